//! A task with known truth: word problems of several arithmetic steps, whose every wrong token can be pointed at.
//!
//! - [`story`]: the words. [`problem`]: the generator and its splits. [`worked`]: right answers.
//! - [`slips`]: answers with one mistake, continued from the wrong value.
//! - [`verifier`]: whether an answer is right, and its first wrong byte.
//! - [`sample`]: a policy's own answers. [`pairs`]: right against wrong. `rows`: answers as training data.
//! - [`cli`]: `qrm-trainer task …`.
//! - [`tokenizer`]: a byte-level BPE trained for it. [`start`]: an untrained model to begin with.

pub mod cli;
pub mod pairs;
pub mod problem;
mod rows;
pub mod sample;
pub mod slips;
pub mod start;
mod story;
pub mod tokenizer;
pub mod verifier;
pub mod worked;

pub use problem::{Problem, Split};
