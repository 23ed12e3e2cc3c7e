//! The fused reward op: what the vocabulary head says of one chosen token per row, without ever holding `[N, V]`.
//!
//! The vocabulary is walked in chunks of [`CHUNK`] columns; each keeps a running `(max, Σe^{z−max}, Σe^{z−max}(z−max))`
//! per row, and chunks are merged in ascending order whichever thread made them. Multiplies are f32, sums across
//! tiles f64. Extra memory: `O(N + ROWS · V / CHUNK)` and one tile per thread.
#![allow(unsafe_code)]

use std::ops::Range;

use candle_core::{Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::f32_slice;
use crate::cpu::isa::{Isa, multiversion};
use crate::cpu::math;
use crate::cpu::multiplier::{Multiplier, Rows};
use crate::cpu::tile::{MAX_ROWS, Tile, WIDTH};
use crate::panels::Panels;

/// Rows handled before the next pass over the weight.
const ROWS: usize = 1024;
/// Columns of one chunk: one partial state of a row.
const CHUNK: usize = 2048;
/// Tasks that a thread should have at least.
const TASKS: usize = 2;
/// Most columns consumed at once.
const COLUMNS: usize = 256;
/// Elements of the weight consumed at once, where a panel has no more: they stay in L2 while the rows pass by.
const ELEMENTS: usize = 80 << 10;

/// Per row of `hidden`, `[N]` each, f32.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenReward {
    /// `Z(s, target)`.
    pub logit: Vec<f32>,
    /// `log Σ_a exp Z(s, a)`, never below `max` nor `logit`.
    pub logsumexp: Vec<f32>,
    /// `max_a Z(s, a)`.
    pub max: Vec<f32>,
    /// Entropy of `softmax Z(s, ·)`, in nats, ≥ 0.
    pub entropy: Vec<f32>,
}

/// A row's state over the columns seen so far.
#[derive(Debug, Clone, Copy)]
struct Partial {
    max: f32,
    /// Σ e^{z − max}
    sum: f64,
    /// Σ e^{z − max} (z − max): with the shift, a peaked row's entropy keeps its small digits.
    moment: f64,
    /// The target's logit, once its column was seen.
    target: f32,
}

impl Partial {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, moment: 0.0, target: f32::NEG_INFINITY };

    /// Of the columns of both. A sum that is not a number stays so: a broken logit must not pass for an absent one.
    fn merge(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        let target = self.target.max(other.target);
        let (mut sum, mut moment) = (0.0, 0.0);
        for part in [self, other] {
            if part.sum != 0.0 {
                let shift = f64::from(part.max) - f64::from(max);
                let factor = shift.exp();
                sum += part.sum * factor;
                moment += factor * (part.moment + shift * part.sum);
            }
        }
        Self { max, sum, moment, target }
    }
}

/// For each row of `hidden [N, d]` (f32) and its `targets [N]`: logit, logsumexp, max and entropy over `weight [V, d]`.
/// Errors when shapes differ or a target is not below V.
pub fn token_reward(hidden: &Tensor, weight: &Panels, targets: &[u32]) -> Result<TokenReward> {
    let (n, d) = hidden.dims2()?;
    if d != weight.in_dim() || n != targets.len() {
        bail!("token_reward: hidden [{n}, {d}], {} targets, {weight:?}", targets.len());
    }
    if let Some(t) = targets.iter().find(|t| **t as usize >= weight.out_dim()) {
        bail!("token_reward: target {t}, vocabulary of {}", weight.out_dim());
    }
    let (storage, layout) = hidden.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("token_reward: a CPU tensor expected") };
    let hidden = f32_slice("token_reward", storage, layout)?;

    let mut out = TokenReward::default();
    for (hidden, targets) in hidden.chunks(ROWS * d.max(1)).zip(targets.chunks(ROWS)) {
        let rows = Rows::new(hidden, weight);
        let chunks = weight.out_dim().div_ceil(CHUNK);
        let part = part(targets.len(), chunks);
        let parts = targets.len().div_ceil(part);
        let walked: Vec<Vec<Partial>> = (0..chunks * parts)
            .into_par_iter()
            .with_max_len(1)
            .map(|task| {
                let first = task % parts * part;
                walk(&rows, weight, first..(first + part).min(targets.len()), targets, task / parts * CHUNK)
            })
            .collect();
        for row in 0..targets.len() {
            let of = |chunk: usize| walked[chunk * parts + row / part][row % part];
            let p = (0..chunks).fold(Partial::EMPTY, |p, chunk| p.merge(of(chunk)));
            let log_sum = p.sum.ln();
            out.logit.push(p.target);
            out.logsumexp.push(at_least(p.max, (f64::from(p.max) + log_sum) as f32));
            out.max.push(p.max);
            out.entropy.push(at_least(0.0, (log_sum - p.moment / p.sum) as f32));
        }
    }
    Ok(out)
}

/// `x`, lifted to `low` where rounding left it below; what is not a number stays so.
fn at_least(low: f32, x: f32) -> f32 {
    if x < low { low } else { x }
}

/// Rows of one task: all, or fewer where a small vocabulary has too few chunks for the threads.
fn part(rows: usize, chunks: usize) -> usize {
    let parts = (TASKS * rayon::current_num_threads()).div_ceil(chunks.max(1));
    rows.div_ceil(parts).next_multiple_of(Isa::detect().rows()).max(1)
}

/// The states of some rows over columns `begin .. begin + CHUNK`.
fn walk(rows: &Rows<'_>, weight: &Panels, some: Range<usize>, targets: &[u32], begin: usize) -> Vec<Partial> {
    let tile_rows = Isa::detect().rows();
    let mut multiplier = Multiplier::new(rows, weight);
    let mut partials = vec![Partial::EMPTY; some.len()];
    let mut tile = Tile::new();
    let mut logits = [0.0f32; MAX_ROWS * COLUMNS];
    let end = (begin + CHUNK).min(weight.out_dim());
    let step = (ELEMENTS / weight.in_dim().max(1) / WIDTH * WIDTH).clamp(WIDTH, COLUMNS);
    for first in (begin..end).step_by(step) {
        let columns = step.min(end - first);
        let panels = first / WIDTH..(first + columns).div_ceil(WIDTH);
        multiplier.load(panels.clone());
        for start in some.clone().step_by(tile_rows) {
            let count = tile_rows.min(some.end - start);
            for (p, panel) in panels.clone().enumerate() {
                multiplier.tile(panel, start, count, &mut tile);
                for i in 0..count {
                    logits[i * step + p * WIDTH..][..WIDTH].copy_from_slice(tile.row(i));
                }
            }
            for i in 0..count {
                let row = &mut logits[i * step..(i + 1) * step];
                row[columns..].fill(f32::NEG_INFINITY); // the padded tail of the last panel is not vocabulary
                let (max, sum, moment) = summarize(row);
                let target = (targets[start + i] as usize).checked_sub(first).filter(|t| *t < columns);
                let target = target.map_or(f32::NEG_INFINITY, |t| row[t]);
                let part = Partial { max, sum: sum.into(), moment: moment.into(), target };
                let partial = &mut partials[start + i - some.start];
                *partial = partial.merge(part);
            }
        }
    }
    partials
}

multiversion! {
    /// `(max, Σe^{z−max}, Σe^{z−max}(z−max))` of some logits. One that is not a number makes the sum so; where all are
    /// −∞, it is 0.
    fn summarize(logits: &[f32]) -> (f32, f32, f32) {
        let max = math::max(logits);
        let from = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums = [0.0f32; math::LANES];
        let mut moments = [0.0f32; math::LANES];
        for chunk in logits.chunks_exact(math::LANES) {
            for i in 0..math::LANES {
                let shifted = chunk[i] - from;
                let e = math::exp(shifted);
                sums[i] += e;
                moments[i] += if e > 0.0 { e * shifted } else { 0.0 };
            }
        }
        (max, math::tree(sums, |a, b| a + b), math::tree(moments, |a, b| a + b))
    }
}
