//! RMSNorm: `y = x / √(mean(x²) + ε) · w`, over rows.
#![allow(unsafe_code)]

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::math::{LANES, tree};
use crate::cpu::{f32_slice, gradient, output, values};

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// Normalises each row of `x [N, d]` and multiplies it by `weight [d]`; f32, `[N, d]`. Gradients for both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice("rms_norm", x, layout)?;
        let weight = f32_slice("rms_norm", weight, weight_layout)?;
        let d = weight.len();
        if d == 0 || layout.dims().last() != Some(&d) {
            bail!("rms_norm: x {:?} does not fit a weight of {d}", layout.shape());
        }
        let fill = |y: output::Output| {
            x.par_chunks(d * TASK_ROWS).enumerate().for_each(|(task, x)| {
                // SAFETY: each task's rows are its own.
                let y = unsafe { y.slice(task * d * TASK_ROWS, x.len()) };
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    normalize(x, weight, self.eps, y);
                }
            });
        };
        // SAFETY: the tasks cover every row, and a row is `d` elements, as was just asked.
        let y = unsafe { output::build(x.len(), fill) };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let read = |t| values("rms_norm", t);
        let (x_values, weight, g) = (read(x)?, read(w)?, read(&g)?);
        let d = weight.len();
        let mut dx = vec![0.0f32; x_values.len()];
        let tasks = dx.par_chunks_mut(d * TASK_ROWS).zip(x_values.par_chunks(d * TASK_ROWS));
        let sums: Vec<Vec<f32>> = tasks
            .zip(g.par_chunks(d * TASK_ROWS))
            .map(|((dx, x), g)| {
                let mut dw = vec![0.0f32; d];
                for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d)) {
                    normalize_backward(x, &weight, self.eps, g, dx, &mut dw);
                }
                dw
            })
            .collect();
        Ok((gradient(dx, x.shape())?, gradient(total(sums, d), w.shape())?))
    }
}

/// The tasks' shares of a weight's gradient, added in their order whichever thread made them.
pub(crate) fn total(shares: Vec<Vec<f32>>, d: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; d];
    for share in shares {
        sum.iter_mut().zip(share).for_each(|(s, v)| *s += v);
    }
    sum
}

multiversion! {
    /// One row; `y` may hold anything.
    pub(crate) fn normalize(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

multiversion! {
    /// One row back: `dx` is set, `dw` added to. With `s = 1/√(mean(x²) + ε)` and `a = w ⊙ g`:
    /// `dx = s a − x s³ (x·a) / d`, `dw = s x ⊙ g`.
    pub(crate) fn normalize_backward(
        x: &[f32], weight: &[f32], eps: f32, g: &[f32], dx: &mut [f32], dw: &mut [f32],
    ) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((dx, w), g) in dx.iter_mut().zip(weight).zip(g) {
            *dx = w * g;
        }
        let along = dot(x, dx) * scale * scale * scale / x.len() as f32;
        for (((dx, dw), x), g) in dx.iter_mut().zip(dw).zip(x).zip(g) {
            *dw += scale * x * g;
            *dx = scale * *dx - along * x;
        }
    }
}

/// `Σ a b` as 16 interleaved sums and a tree over them.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut a).zip(&mut b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((l, a), b) in lanes.iter_mut().zip(a.remainder()).zip(b.remainder()) {
        *l += a * b;
    }
    tree(lanes, |a, b| a + b)
}
