//! What black-box tests need: the real server as a process, a client that speaks to it, inputs to send.
//!
//! - [`server`]: starts `qrm-server` on a free port and stops it.
//! - [`client`]: JSON over HTTP, every status an answer.
//! - [`browser`]: a real Chromium without a window.
//! - [`inputs`]: fixture checkpoints, reproducible random trajectories. [`mutate`]: inputs that nobody means.
#![forbid(unsafe_code)]

pub mod browser;
pub mod client;
pub mod inputs;
pub mod mutate;
pub mod server;

pub use browser::Browser;
pub use client::{Answer, Client};
pub use inputs::{Rng, fixture};
pub use server::Server;
