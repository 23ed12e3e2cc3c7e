//! The way back through the vocabulary head: what a loss's gradients of logit, logsumexp and entropy are as gradients of
//! the logits themselves.

use candle_core::{Result, bail};
use cudarc::driver::CudaView;

use super::gpu::launch;
use super::matrix::Matrix;
use crate::weights::Float;

/// Turns a chunk of logits `[n, columns]`, those of the vocabulary's columns `first ..`, into their gradients: with
/// `p = softmax(Z)` and entropy H, `g_logit · onehot(target) + (g_logsumexp − g_H · (log p + H)) · p`. `scores [4, n]` are
/// [`token_reward`](super::token_reward())'s as f32 rows (logit, logsumexp, max, entropy), `g [n, 3]` the gradients of
/// logit, logsumexp and entropy, f32.
pub fn logits_gradient(
    mut logits: Matrix,
    first: usize,
    targets: &CudaView<'_, u32>,
    scores: &Matrix,
    g: &Matrix,
) -> Result<Matrix> {
    let n = logits.rows;
    let is_f32 = scores.dtype == Float::F32 && g.dtype == Float::F32;
    if targets.len() != n || scores.shape() != (4, n) || g.shape() != (n, 3) || !is_f32 {
        bail!("logits_gradient: {logits:?}, {} targets, scores {scores:?}, gradients {g:?}", targets.len());
    }
    if n > 0 {
        let row = |i: usize| scores.data.slice(i * n * 4..(i + 1) * n * 4);
        let (logsumexp, entropy) = (row(1), row(3));
        let gpu = logits.gpu.clone();
        let (columns, first, count) = (logits.columns as i32, first as i32, n as i32);
        launch!(&gpu, "token_logits_backward", Some(logits.dtype), (n, logits.columns.div_ceil(4096), 1), 256, 0;
            &mut logits.data, &columns, &first, &columns, targets, &logsumexp, &entropy, &g.data, &count);
    }
    Ok(logits)
}
