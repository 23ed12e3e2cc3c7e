//! A reward model: a checkpoint on disk in, one reward per response token out.
//!
//! # Layout
//!
//! - [`checkpoint`]: where weights come from. `config.json`, safetensors or GGUF, hub ids, `qrm_config.json`.
//! - [`text`]: tokenizer and chat template; text and messages become token ids with byte offsets.
//! - [`trajectory`]: prompt and response token ids, the unit of work.
//! - [`forest`]: a batch of trajectories as segments with shared prefixes, each token computed once.
//! - [`decoder`]: the one decoder; Llama, Mistral, Qwen2 and Qwen3 are settings of it.
//!   `loader` and `projection` are parts of it.
//! - `quantized`: weights in int8, kept in a file from one start to the next.
//! - [`placement`]: where the layers compute. `pipeline`: batches through a decoder that is in parts.
//! - [`head`]: from hidden states to raw per-token scores, of a vocabulary or a scalar.
//! - [`reward`]: reward definitions over raw scores, and their normalisation. `steps`: where steps end.
//! - [`reward_model`]: the whole, as the server and the trainer hold it.
//! - [`prefix_cache`]: keys and values of prompts, kept between batches.
//! - [`generation`]: sampling answers from a vocabulary head, with cached keys and values.
//! - [`training`]: what is trained, LoRA, and gradients with per-layer checkpointing.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod decoder;
pub mod forest;
pub mod generation;
pub mod head;
mod loader;
mod pipeline;
pub mod placement;
pub mod prefix_cache;
mod projection;
mod quantized;
pub mod reward;
pub mod reward_model;
mod steps;
pub mod text;
pub mod training;
pub mod trajectory;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use placement::Placement;
pub use prefix_cache::{PrefixCache, PrefixCacheStats};
pub use reward::RewardKind;
pub use reward_model::{BatchScores, ModelError, RewardModel, Work};
pub use text::{TextError, TextProcessor};
pub use trajectory::Trajectory;
