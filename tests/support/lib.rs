//! What black-box tests need: the real server as a process, a client that speaks to it, inputs to send.
//!
//! - [`server`]: starts `qrm-server` on a free port and stops it.
//! - [`client`]: JSON over HTTP, every status an answer.
//! - [`browser`]: a real Chromium without a window.
//! - [`inputs`]: fixture checkpoints, reproducible random trajectories. [`mutate`]: inputs that nobody means.
//! - [`numbers`]: those in an answer. [`raw`]: HTTP by hand. [`wait`]: for what comes in its own time.
#![forbid(unsafe_code)]

pub mod browser;
pub mod client;
pub mod inputs;
pub mod mutate;
pub mod numbers;
pub mod raw;
pub mod server;
pub mod wait;

pub use browser::Browser;
pub use client::{Answer, Client};
pub use inputs::{Rng, copy, fixture};
pub use numbers::{doubles, floats, from_base64};
pub use server::Server;
pub use wait::until;
