//! `y = x Wᵀ (+ bias) (+ residual)` with packed weights.
#![allow(unsafe_code)]

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::Isa;
use crate::cpu::tile::{MAX_ROWS, Tile, WIDTH, multiply};
use crate::cpu::{f32_slice, output};
use crate::panels::Panels;

/// Rows of one task: their inputs stay in L2 while the task's panels pass by.
const TASK_ROWS: usize = 8 * MAX_ROWS;
/// Panels of one task.
const TASK_PANELS: usize = 6;

/// `x [N, k]` times `weight [out, k]` transposed, plus `bias [out]`, plus `residual [N, out]`; f32, `[N, out]`.
pub fn linear(
    x: &Tensor,
    weight: &Panels,
    bias: Option<&[f32]>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    if bias.is_some_and(|b| b.len() != weight.out_dim()) {
        bail!("linear: bias of {:?} for {weight:?}", bias.map(<[f32]>::len));
    }
    let op = Linear { weight, bias };
    // Safety of the lifetime: ops without backward are run at once and not kept, so borrowing is enough.
    match residual {
        None => op.run1(x),
        Some(residual) => op.run2(x, residual),
    }
}

struct Linear<'a> {
    weight: &'a Panels,
    bias: Option<&'a [f32]>,
}

impl Linear<'_> {
    fn run1(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }

    fn run2(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(residual, self)
    }

    fn forward(&self, x: &[f32], shape: &Shape, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (n, k) = shape.dims2()?;
        let out = self.weight.out_dim();
        if k != self.weight.in_dim() || residual.is_some_and(|r| r.len() != n * out) {
            bail!("linear: x {shape:?} does not fit {:?}", self.weight);
        }
        let isa = Isa::detect();
        let row_tasks = n.div_ceil(TASK_ROWS);
        let panel_tasks = self.weight.count().div_ceil(TASK_PANELS);
        let fill = |y: output::Output| {
            (0..row_tasks * panel_tasks).into_par_iter().with_max_len(1).for_each(|task| {
                let rows = (task % row_tasks) * TASK_ROWS..((task % row_tasks + 1) * TASK_ROWS).min(n);
                let first = (task / row_tasks) * TASK_PANELS;
                let mut tile = Tile::new();
                for p in first..(first + TASK_PANELS).min(self.weight.count()) {
                    let column = p * WIDTH;
                    let width = WIDTH.min(out - column);
                    for start in rows.clone().step_by(MAX_ROWS) {
                        let count = MAX_ROWS.min(rows.end - start);
                        multiply(isa, &x[start * k..], k, count, k, self.weight.panel(p), &mut tile);
                        for i in 0..count {
                            let at = (start + i) * out + column;
                            // SAFETY: each (row, panel) belongs to one task.
                            let y = unsafe { y.slice(at, width) };
                            y.copy_from_slice(&tile.row(i)[..width]);
                            if let Some(bias) = self.bias {
                                y.iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
                            }
                            if let Some(residual) = residual {
                                y.iter_mut().zip(&residual[at..]).for_each(|(y, r)| *y += r);
                            }
                        }
                    }
                }
            });
        };
        // SAFETY: the tasks cover every row and every panel.
        let y = unsafe { output::build(n * out, fill) };
        Ok((CpuStorage::F32(y), Shape::from((n, out))))
    }
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(f32_slice("linear", x, layout)?, layout.shape(), None)
    }
}

impl CustomOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = f32_slice("linear", residual, residual_layout)?;
        self.forward(f32_slice("linear", x, layout)?, layout.shape(), Some(residual))
    }
}
