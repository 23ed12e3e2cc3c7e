//! Policies trained with rewards from a running `qrm-server`.
//!
//! # Layout
//!
//! - [`cli`]: subcommands and flags.
//! - [`task`]: prompts whose answers can be checked.
//! - [`rollout`]: what the policy samples in a step. [`rewards`]: what the server says of it.
//! - [`signal`]: the formulas on rewards: normalisation, KL, returns, GAE, groups. [`push`]: what of them makes an algorithm.
//! - [`objective`]: the losses. [`learner`]: a model, its gradients and its optimiser.
//! - [`settings`]: everything a run is made of. [`run`]: the loop. [`evaluate`]: Pass@1 and Pass@N.
//! - [`sample`]: answers as JSONL. [`reproduce`]: the whole experiment, from nothing to a table. [`plots`]: SVG.
#![forbid(unsafe_code)]

pub mod cli;
pub mod evaluate;
pub mod learner;
pub mod objective;
pub mod plots;
pub mod push;
pub mod reproduce;
pub mod rewards;
pub mod rollout;
pub mod run;
pub mod sample;
pub mod settings;
pub mod signal;
pub mod task;
