//! The server from outside: real process, real HTTP and gRPC, tiny checkpoints.

mod baselines;
mod bounds;
mod built_in;
mod chaos;
mod compression;
mod connections;
mod contract;
mod cores;
mod dialects;
mod errors;
mod golden;
mod grpc;
mod invariance;
mod load;
mod metrics;
mod models;
mod offline;
mod page;
mod python;
mod rl;
mod security;
mod shell;
mod spans;
mod streaming;
mod traces;
