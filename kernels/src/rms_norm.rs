//! RMSNorm: `y = x / √(mean(x²) + ε) · w`, over rows.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::f32_slice;
use crate::cpu::isa::multiversion;
use crate::cpu::math::{LANES, tree};

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// Normalises each row of `x [N, d]` and multiplies it by `weight [d]`; f32, `[N, d]`.
pub fn rms_norm(x: &Tensor, weight: &[f32], eps: f32) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { weight, eps })
}

struct RmsNorm<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice("rms_norm", x, layout)?;
        let d = self.weight.len();
        if d == 0 || layout.dims().last() != Some(&d) {
            bail!("rms_norm: x {:?} does not fit a weight of {d}", layout.shape());
        }
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(d * TASK_ROWS).zip(x.par_chunks(d * TASK_ROWS)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                normalize(x, self.weight, self.eps, y);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

multiversion! {
    /// One row; `y` may hold anything.
    pub(crate) fn normalize(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (l, v) in lanes.iter_mut().zip(chunk) {
                *l += v * v;
            }
        }
        for (l, v) in lanes.iter_mut().zip(chunks.remainder()) {
            *l += v * v;
        }
        let mean = tree(lanes, |a, b| a + b) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}
