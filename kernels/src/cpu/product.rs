//! The whole multiply: rows times panels on all threads, and the two products of its way back.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::multiplier::{Multiplier, Rows};
use super::output;
use super::tile::{Tile, WIDTH};
use crate::panels::Panels;

/// Tiles of one task, one below the other: their inputs stay in L2 while the task's panels pass by.
const TASK_TILES: usize = 8;
/// Panels of one task.
const TASK_PANELS: usize = 6;

/// `x [n, k]` times `weight [out, k]` transposed, `[n, out]`, plus `bias [out]` and `residual [n, out]`.
pub(crate) fn product(
    x: &[f32],
    n: usize,
    weight: &Panels,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let out = weight.out_dim();
    let tile_rows = Isa::detect().rows();
    let task_rows = TASK_TILES * tile_rows;
    let row_tasks = n.div_ceil(task_rows);
    let panel_tasks = weight.count().div_ceil(TASK_PANELS);
    let x = Rows::new(x, weight);
    let fill = |y: output::Output| {
        let tasks = (0..row_tasks * panel_tasks).into_par_iter().with_max_len(1);
        tasks.for_each_init(
            || Multiplier::new(&x, weight),
            |multiplier, task| {
                let rows = (task % row_tasks) * task_rows..((task % row_tasks + 1) * task_rows).min(n);
                let first = (task / row_tasks) * TASK_PANELS;
                let mut tile = Tile::new();
                for p in first..(first + TASK_PANELS).min(weight.count()) {
                    let column = p * WIDTH;
                    let width = WIDTH.min(out - column);
                    multiplier.load(p..p + 1);
                    for start in rows.clone().step_by(tile_rows) {
                        let count = tile_rows.min(rows.end - start);
                        multiplier.tile(p, start, count, &mut tile);
                        for i in 0..count {
                            let at = (start + i) * out + column;
                            // SAFETY: each (row, panel) belongs to one task.
                            let y = unsafe { y.slice(at, width) };
                            let bias = bias.map(|bias| &bias[column..][..width]);
                            store(tile.row(i), bias, residual.map(|r| &r[at..][..width]), y);
                        }
                    }
                }
            },
        );
    };
    // SAFETY: the tasks cover every row and every panel.
    unsafe { output::build(n * out, fill) }
}

multiversion! {
    /// A tile's row with what is added to it; its tail may be padding.
    fn store(row: &[f32; WIDTH], bias: Option<&[f32]>, residual: Option<&[f32]>, y: &mut [f32]) {
        let mut sum = *row;
        for part in [bias, residual].into_iter().flatten() {
            match <&[f32; WIDTH]>::try_from(part) {
                Ok(part) => sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
                Err(_) => sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
            }
        }
        match <&mut [f32; WIDTH]>::try_from(&mut *y) {
            Ok(y) => *y = sum,
            Err(_) => y.copy_from_slice(&sum[..y.len()]),
        }
    }
}

/// `Σ_i g[i, o] x[i, j]`, `[out, k]`: a weight's gradient from its input `x [n, k]` and the gradient `g [n, out]` of
/// its output, plus what there is of it already.
pub(crate) fn weight_gradient(g: &[f32], out: usize, x: &[f32], k: usize, sum: Option<&[f32]>) -> Vec<f32> {
    product(&transpose(g, out), out, &Panels::pack_transposed(x, k), None, sum)
}

/// Rows that a transpose reads at a time: it then writes runs of whole cache lines. Single floats a power of two apart
/// would all fall into the same few lines of the cache.
const RUN: usize = 32;

/// `x [n, columns]` as `[columns, n]`.
fn transpose(x: &[f32], columns: usize) -> Vec<f32> {
    let n = x.len() / columns.max(1);
    let mut y = vec![0.0f32; x.len()];
    y.par_chunks_mut((n * WIDTH).max(1)).enumerate().for_each(|(block, y)| {
        for (run, rows) in x.chunks(RUN * columns).enumerate() {
            for (j, column) in y.chunks_exact_mut(n).enumerate() {
                let values = rows[block * WIDTH + j..].iter().step_by(columns);
                column[run * RUN..].iter_mut().zip(values).for_each(|(y, v)| *y = *v);
            }
        }
    });
    y
}
