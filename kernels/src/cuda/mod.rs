//! The CUDA faces of the ops: the same names and shapes as the CPU's, on matrices in a GPU's memory.
//!
//! - [`gpu`]: a device with its stream, memory pool and compiled kernels. `error`: why there is none.
//! - [`matrix`]: f32, f16 or bf16 rows in device memory; [`Vector`]: the weight of a norm.
//! - [`multiply`]: `x Wᵀ` by cuBLASLt, with bias or residual in the same pass.
//! - [`ops`]: embedding, RMSNorm, RoPE, SwiGLU, scalar head.
//! - [`attention`]: a forest's tasks and where their keys lie, uploaded once for all layers.
//! - [`int8`]: weights of one byte, widened before each multiply.
//! - [`token_reward`]: the fused reward op in its three forms, the fastest of them found by measuring.
//!   [`token_logits`]: its way back. `wgmma`: the launch of its form for compute capability 9.0.
//! - `*.cu`, `*.cuh`: the kernels, which name their own layouts.
//!
//! The driver and cuBLASLt are loaded when a device is first asked for, so that the same binary starts on a machine that
//! has neither. Everything of a device is queued on one stream; only the copy of a result to the host waits for it.
//! What goes through multiplies is in the weights' type, sums and the residual stream are f32.

mod attention;
mod error;
mod gpu;
mod int8;
mod matrix;
mod multiply;
mod ops;
mod token_logits;
mod token_reward;
mod wgmma;

pub use attention::{Batch, Plan, Pool, forest_attention, keep, pool};
pub use error::GpuError;
pub use gpu::{Gpu, count};
pub use matrix::{Matrix, Vector};
pub use ops::{Linear, Rotation, embed, linear, qk_rope, rms_norm, row_dot, swiglu};
pub use token_logits::logits_gradient;
pub use token_reward::{Form, token_reward};
