//! SwiGLU: `silu(gate) · up`, the two halves of one multiply's output.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::{f32_slice, math};

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// `gate_up [N, 2m]` (gate first) to `silu(gate) · up`, `[N, m]`, f32.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&SwiGlu)
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
}

multiversion! {
    fn gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + math::exp(-g)) * u;
        }
    }
}
