//! Policies trained with rewards from a running `qrm-server`.
//!
//! # Layout
//!
//! - [`cli`]: subcommands and flags.
//! - [`task`]: prompts whose answers can be checked.
//! - [`rollout`]: what the policy samples in a step. [`rewards`]: what the server says of it.
//! - [`signal`]: from rewards to what a token is pushed by: normalisation, KL, returns, GAE, groups.
//! - [`objective`]: the losses. [`learner`]: a model, its gradients and its optimiser.
//! - [`run`]: the loop. [`evaluate`]: Pass@1 and Pass@N.
#![forbid(unsafe_code)]

pub mod cli;
pub mod evaluate;
pub mod learner;
pub mod objective;
pub mod rewards;
pub mod rollout;
pub mod run;
pub mod signal;
pub mod task;
