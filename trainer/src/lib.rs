//! Reward models from preference pairs.
//!
//! # Layout
//!
//! - [`cli`]: subcommands and flags.
//! - [`data`]: JSONL rows to [`data::Example`]s; bad rows are named before training starts.
//! - [`objective`]: the losses (Q-RM, outcome, step, DPO, SFT) over the head's outputs.
//! - [`batches`]: the order of the examples, and token-budget micro-batches.
//! - [`optimizer`]: AdamW, gradient clipping, learning-rate schedules.
//! - [`workers`]: processes that train together (feature `mpi`).
//! - [`run`]: what a run is made of, and the loop. [`state`]: what a killed run goes on from.
//! - [`evaluate`]: preference accuracy, margin, entropy, calibration. [`credit`]: whether a reward finds the wrong token.
//! - [`export`]: a finished model in Hugging Face layout, adapters in PEFT's.
//! - [`report`]: progress bar, JSONL and TensorBoard metrics.
//! - [`task`]: arithmetic word problems whose every wrong token is known, to train and judge reward models on.
//! - [`files`]: files that are there whole or not at all.
#![forbid(unsafe_code)]

pub mod batches;
pub mod cli;
pub mod credit;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod objective;
pub mod optimizer;
pub mod report;
pub mod run;
pub mod state;
pub mod task;
pub mod workers;
