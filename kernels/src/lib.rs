//! The numeric ops of the token-reward model, as candle custom ops.
//!
//! # Layout
//!
//! - [`reference`]: every op in plain f64, the truth the tests compare with.
//! - [`weights`]: what weights are held in: floats, or codes of one byte or two.
//! - [`panels`]: a weight matrix packed once for the multiply; [`linear()`] multiplies by it.
//! - [`rms_norm()`], [`rope`], [`swiglu()`]: the small ops between the multiplies, one pass over memory each; [`gates`]: SwiGLU as
//!   a multiply's last step.
//! - [`attention`]: causal attention over a forest of segments, online softmax, no score matrix; keys and values kept
//!   for tokens and for batches that come later.
//! - [`token_reward()`]: logit, logsumexp, max and entropy of chosen tokens without ever holding `[N, V]`;
//!   [`token_logits()`]: its face for training.
//! - [`device`]: where a model computes, and how its weights get there. [`cores`]: CPUs it is kept on. [`rows`]: activations
//!   whatever the device, and the ops on them.
//! - `cuda`, behind the feature of that name: the CUDA faces and their kernels.
//! - [`mmap`]: files as read-only memory. [`memory`]: the allocator. [`threads`]: candle's, kept out of the way.
//! - `cpu/`: what the CPU faces share: instruction-set choice, the multiply and its inner tiles in f32 and integers, `exp`.
//!
//! Ops have a backward for candle's autograd. Its sums over rows run in a fixed order too, so that a training run can
//! be repeated bit for bit.
//!
//! # Batch invariance
//!
//! Every output element is computed by one fixed sequence of operations that depends on that row alone: not on the
//! number of rows, their order, the tile a row falls in, or the thread that runs it. Equal inputs give equal
//! bits in any batch.

pub mod attention;
pub mod cores;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod cuda;
pub mod device;
pub mod gates;
pub mod linear;
pub mod memory;
pub mod mmap;
pub mod panels;
pub mod reference;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod swiglu;
pub mod threads;
pub mod token_logits;
pub mod token_reward;
pub mod weights;

mod cpu;

pub use attention::{BLOCK, Fresh, KvCache, Segment, forest_attention, keys_and_values, prefix_attention};
pub use cores::Cores;
pub use device::{Device, Norm};
pub use gates::Gates;
pub use linear::{Weight, linear};
pub use panels::Panels;
pub use rms_norm::rms_norm;
pub use rope::{QkNorm, RopeTable, qk_rope};
pub use rows::{Layout, Rows};
pub use swiglu::swiglu;
pub use token_logits::token_logits;
pub use token_reward::{TokenReward, token_reward};
pub use weights::{Float, Held, Int8, Weights};
