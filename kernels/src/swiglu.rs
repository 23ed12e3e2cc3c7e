//! SwiGLU: `silu(gate) · up`, the two halves of one multiply's output.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::{f32_slice, gradient, math, values};

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// `gate_up [N, 2m]` (gate first) to `silu(gate) · up`, `[N, m]`, f32.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1(SwiGlu)
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice("swiglu", x, layout)?;
        let (n, width) = layout.shape().dims2()?;
        let m = width / 2;
        if m == 0 || width % 2 == 1 {
            bail!("swiglu: an even width expected, got {width}");
        }
        let mut y = vec![0.0f32; n * m];
        y.par_chunks_mut(m * TASK_ROWS).zip(x.par_chunks(width * TASK_ROWS)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(m).zip(x.chunks_exact(width)) {
                gate(&x[..m], &x[m..], y);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (x_values, g) = (values("swiglu", x)?, values("swiglu", &g)?);
        let (width, m) = (x.dim(1)?, x.dim(1)? / 2);
        let mut dx = vec![0.0f32; x_values.len()];
        let rows = dx.par_chunks_mut(width * TASK_ROWS).zip(x_values.par_chunks(width * TASK_ROWS));
        rows.zip(g.par_chunks(m * TASK_ROWS)).for_each(|((dx, x), g)| {
            for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(m)) {
                let (d_gate, d_up) = dx.split_at_mut(m);
                gate_backward(&x[..m], &x[m..], g, d_gate, d_up);
            }
        });
        gradient(dx, x.shape())
    }
}

multiversion! {
    pub(crate) fn gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + math::exp(-g)) * u;
        }
    }
}

multiversion! {
    /// `silu'(z) = σ(z) (1 + z (1 − σ(z)))`.
    fn gate_backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for i in 0..gate.len().min(up.len()).min(g.len()).min(d_gate.len()).min(d_up.len()) {
            let sigma = 1.0 / (1.0 + math::exp(-gate[i]));
            d_gate[i] = g[i] * up[i] * sigma * (1.0 + gate[i] * (1.0 - sigma));
            d_up[i] = g[i] * gate[i] * sigma;
        }
    }
}
