//! The whole multiply: rows times panels on all threads, and the two products of its way back.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::multiplier::{Multiplier, Rows};
use super::output;
use super::tile::{Tile, WIDTH};
use crate::gates::GATES;
use crate::panels::Panels;
use crate::swiglu;

/// Tiles of one task at most, one below the other: their inputs stay in L2 while the task's panels pass by.
const TASK_TILES: usize = 8;
/// Panels of one task at most.
const TASK_PANELS: usize = 6;
/// Tasks that a thread should have at least, so that none waits long for the last.
const TASKS: usize = 4;

/// `x [n, k]` times `weight [out, k]` transposed, `[n, out]`, plus `bias [out]` and `residual [n, out]`.
pub(crate) fn product(
    x: &[f32],
    n: usize,
    weight: &Panels,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let out = weight.out_dim();
    let x = Rows::new(x, weight);
    let fill = |y: output::Output| {
        let start = || (Multiplier::new(&x, weight), Tile::new());
        each_panel(n, weight.count(), start, |(multiplier, tile), p, tiles| {
            let column = p * WIDTH;
            let width = WIDTH.min(out - column);
            multiplier.load(p..p + 1);
            for (start, count) in tiles {
                multiplier.tile(p, start, count, tile);
                // SAFETY: each (row, panel) belongs to one task.
                let y = unsafe { y.block(start * out + column, out, width) };
                store(tile, count, bias.map(|bias| &bias[column..][..width]), residual, y);
            }
        });
    };
    // SAFETY: the tasks cover every row and every panel.
    unsafe { output::build(n * out, fill) }
}

/// `silu(x Gᵀ) · (x Uᵀ)`, `[n, m]`, where `weight [2m, k]` is what [`Gates::pack`](crate::Gates::pack) made of G and U. The two products, the
/// largest of a decoder's activations, are never written.
pub(crate) fn gated_product(x: &[f32], n: usize, weight: &Panels) -> Vec<f32> {
    let m = weight.out_dim() / 2;
    let x = Rows::new(x, weight);
    let fill = |y: output::Output| {
        let start = || (Multiplier::new(&x, weight), Tile::new());
        each_panel(n, weight.count(), start, |(multiplier, tile), p, tiles| {
            let column = p * GATES;
            let width = GATES.min(m - column);
            multiplier.load(p..p + 1);
            for (start, count) in tiles {
                multiplier.tile(p, start, count, tile);
                // SAFETY: each (row, panel) belongs to one task.
                let mut y = unsafe { y.block(start * m + column, m, width) };
                for i in 0..count {
                    let (gates, ups) = tile.row(i).split_at(width);
                    swiglu::gate(gates, ups, y.row(i));
                }
            }
        });
    };
    // SAFETY: the tasks cover every row and every panel.
    unsafe { output::build(n * m, fill) }
}

/// Work for all threads: `each(state, panel, tiles)` for every panel and some of the rows' tiles `(first row, rows)`, a task's
/// panels one after the other with the state that its thread has from `start`.
fn each_panel<S>(
    n: usize,
    panels: usize,
    start: impl Fn() -> S + Sync + Send,
    each: impl Fn(&mut S, usize, &mut dyn Iterator<Item = (usize, usize)>) + Sync + Send,
) {
    let tile_rows = Isa::detect().rows();
    let (task_tiles, task_panels) = task(n.div_ceil(tile_rows), panels, TASKS * rayon::current_num_threads());
    let task_rows = task_tiles * tile_rows;
    let row_tasks = n.div_ceil(task_rows);
    let tasks = (0..row_tasks * panels.div_ceil(task_panels)).into_par_iter().with_max_len(1);
    tasks.for_each_init(start, |state, task| {
        let rows = (task % row_tasks) * task_rows..((task % row_tasks + 1) * task_rows).min(n);
        let first = (task / row_tasks) * task_panels;
        for p in first..(first + task_panels).min(panels) {
            let starts = rows.clone().step_by(tile_rows);
            each(state, p, &mut starts.map(|start| (start, tile_rows.min(rows.end - start))));
        }
    });
}

/// Tiles and panels of a task: as many as it may have, or fewer, so that there are `wanted` tasks. First fewer panels, since
/// what a task makes of a panel before it multiplies serves all its rows. (A number has the same bits in any task.)
fn task(tiles: usize, panels: usize, wanted: usize) -> (usize, usize) {
    let split = |all: usize, most: usize, parts: usize| all.div_ceil(parts).clamp(1, most);
    let row_tasks = tiles.div_ceil(TASK_TILES).max(1);
    let task_panels = split(panels, TASK_PANELS, wanted.div_ceil(row_tasks));
    let panel_tasks = panels.div_ceil(task_panels).max(1);
    let task_tiles = split(tiles, TASK_TILES, wanted.div_ceil(panel_tasks).max(row_tasks));
    (task_tiles, task_panels)
}

multiversion! {
    /// A tile's rows with what is added to them; their tails may be padding.
    fn store(tile: &Tile, rows: usize, bias: Option<&[f32]>, residual: Option<&[f32]>, y: output::Block) {
        let mut y = y;
        for i in 0..rows {
            let at = y.at(i);
            let y = y.row(i);
            let mut sum = *tile.row(i);
            for part in [bias, residual.map(|residual| &residual[at..][..y.len()])].into_iter().flatten() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_multiplies_have_tasks_for_every_thread() {
        let tasks = |tiles: usize, panels: usize, wanted| {
            let (t, p) = task(tiles, panels, wanted);
            assert!((1..=TASK_TILES).contains(&t) && (1..=TASK_PANELS).contains(&p), "{t} {p}");
            tiles.div_ceil(t) * panels.div_ceil(p)
        };
        for (tiles, panels) in [(5, 18), (15, 5), (8, 5), (1, 20), (8, 96), (147, 18), (200, 400)] {
            for wanted in [1, 4, 8, 16, 256] {
                let all = tasks(tiles, panels, wanted);
                assert!(
                    all >= wanted.min(tiles * panels) / 2,
                    "{all} of {wanted}: {tiles} tiles, {panels} panels"
                );
            }
        }
        assert_eq!(task(147, 96, 8), (TASK_TILES, TASK_PANELS), "a large one is cut as before");
        assert_eq!((task(0, 5, 8), task(5, 0, 8)), ((1, 1), (1, 1)));
    }
}
