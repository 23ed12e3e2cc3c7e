//! Causal attention over a forest of token segments, with online softmax and no score matrix.
//!
//! A segment's queries see their ancestors' keys and values and their own, causally. Keys are walked in blocks of
//! [`KEYS`] absolute positions, whichever segments those positions lie in, so that a trajectory's bits
//! do not depend on where the forest cut its prefix. `forward` is the way there, `backward` the way back
//! (FlashAttention-2, arXiv 2307.08691: weights are made again from each row's logsumexp). `cache` keeps keys and values
//! for tokens that come later, `prefix` those of whole blocks for batches that come later.

mod backward;
mod cache;
mod forward;
mod prefix;

pub use cache::{Fresh, KvCache};
pub use prefix::{BLOCK, keys_and_values, prefix_attention};

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::cpu::tile::WIDTH;
use crate::cpu::{f32_slice, gradient, values};
use forward::{Queries, Store};

/// Key positions of one block.
const KEYS: usize = 64;
/// Most query positions of one task.
const QUERIES: usize = 64;

/// A run of tokens computed once: rows `start .. start + len` of the packed batch, at positions `position ..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First row in the packed batch, or after its N rows where it lies in kept blocks.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Index of the segment it continues; always smaller than its own.
    pub parent: Option<usize>,
    /// Position of its first token: the tokens of all its ancestors.
    pub position: usize,
}

/// `qkv [N, (q_heads + 2 kv_heads) · head_dim]`, rotated, to `[N, q_heads · head_dim]`, f32. Scores are scaled by
/// `1/√head_dim`; with `window` a query sees the last `window` positions, its own included.
pub fn forest_attention(
    qkv: &Tensor,
    segments: &Arc<[Segment]>,
    q_heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let heads = Heads::new(q_heads, kv_heads, width, window)?;
    check(segments, n)?;
    qkv.apply_op1(Attention { segments: segments.clone(), heads, logsumexp: OnceLock::new() })
}

/// Every segment continues where its parent, one before it, ends.
pub(crate) fn check_order(segments: &[Segment]) -> Result<()> {
    for (i, s) in segments.iter().enumerate() {
        let position = match s.parent {
            None => 0,
            Some(p) if p < i => segments[p].position + segments[p].len,
            Some(p) => bail!("attention: segment {i} has parent {p}"),
        };
        if s.position != position {
            bail!("attention: segment {i} is {s:?}, expected position {position}");
        }
    }
    Ok(())
}

/// The segments cover the rows in order.
fn check(segments: &[Segment], n: usize) -> Result<()> {
    check_order(segments)?;
    let mut covered = 0;
    for (i, s) in segments.iter().enumerate() {
        if s.start != covered {
            bail!("attention: segment {i} is {s:?}, expected start {covered}");
        }
        covered += s.len;
    }
    if covered != n {
        bail!("attention: segments cover {covered} of {n} rows");
    }
    Ok(())
}

/// How a row of `qkv` is divided: queries, then keys, then values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
    window: Option<usize>,
}

impl Heads {
    fn new(q: usize, kv: usize, width: usize, window: Option<usize>) -> Result<Self> {
        if kv == 0 || !q.is_multiple_of(kv) || !width.is_multiple_of(q + 2 * kv) || width == 0 {
            bail!("attention: {q} query and {kv} key heads in a width of {width}");
        }
        Ok(Self { q, kv, dim: width / (q + 2 * kv), window })
    }

    /// Query heads that read one key/value head.
    fn group(self) -> usize {
        self.q / self.kv
    }

    /// Of a row of `qkv`.
    fn width(self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Column of `kv_head`'s keys.
    fn keys(self, kv_head: usize) -> usize {
        (self.q + kv_head) * self.dim
    }

    /// Column of `kv_head`'s values.
    fn values(self, kv_head: usize) -> usize {
        (self.q + self.kv + kv_head) * self.dim
    }

    /// Which keys of the block that starts at `block` the query at `position` sees.
    fn seen(self, position: usize, block: usize) -> std::ops::Range<usize> {
        let low = self.window.map_or(0, |w| (position + 1).saturating_sub(w)).saturating_sub(block);
        let high = (position + 1).saturating_sub(block).min(KEYS);
        low.min(high)..high
    }

    /// The blocks of keys that queries at `begin .. end` see, by their first position.
    fn blocks(self, begin: usize, end: usize) -> impl Iterator<Item = usize> {
        let first = self.window.map_or(0, |w| (begin + 1).saturating_sub(w));
        (first / KEYS..end.div_ceil(KEYS)).map(|block| block * KEYS)
    }
}

/// Root first: `(first position, first row)` of a segment's ancestors and itself.
pub(crate) type Chain = Vec<(usize, usize)>;

pub(crate) fn chain(segments: &[Segment], segment: usize) -> Chain {
    let mut chain = Vec::new();
    let mut at = Some(segment);
    while let Some(i) = at {
        chain.push((segments[i].position, segments[i].start));
        at = segments[i].parent;
    }
    chain.reverse();
    chain
}

/// The rows of the packed batch that hold `positions` of a chain.
pub(crate) fn rows(
    chain: &[(usize, usize)],
    positions: std::ops::Range<usize>,
) -> impl Iterator<Item = usize> {
    let mut link = chain.iter().rposition(|(first, _)| *first <= positions.start).unwrap_or(0);
    positions.map(move |position| {
        while chain.get(link + 1).is_some_and(|(first, _)| *first <= position) {
            link += 1;
        }
        chain[link].1 + position - chain[link].0
    })
}

/// Rows `[head]` as the columns of panels `[head, WIDTH]`, sixteen at a time so that whole cache lines are written.
/// Columns without a row stay as they are.
fn columns(panels: &mut [f32], head: usize, rows: &[&[f32]]) {
    for (block, rows) in rows.chunks(16).enumerate() {
        let first = block * 16 / WIDTH * head * WIDTH + block * 16 % WIDTH;
        let lines = panels[first..].chunks_mut(WIDTH).take(head).enumerate();
        match <[&[f32]; 16]>::try_from(rows) {
            Ok(rows) if rows.iter().all(|row| row.len() == head) => {
                lines.for_each(|(d, line)| (0..16).for_each(|j| line[j] = rows[j][d]));
            }
            _ => lines.for_each(|(d, line)| rows.iter().zip(line).for_each(|(row, x)| *x = row[d])),
        }
    }
}

struct Attention {
    segments: Arc<[Segment]>,
    heads: Heads,
    /// Of every row and query head, `[N, q_heads]`, left by the forward for the way back.
    logsumexp: OnceLock<Vec<f32>>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "forest_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, _) = layout.shape().dims2()?;
        let qkv = f32_slice("forest_attention", qkv, layout)?;
        let chains: Vec<_> = (0..self.segments.len()).map(|i| chain(&self.segments, i)).collect();
        let queries: Vec<_> = self
            .segments
            .iter()
            .zip(&chains)
            .map(|(s, chain)| Queries { chain, row: s.start, len: s.len, position: s.position })
            .collect();
        let (keys, values) = (self.heads.keys(0), self.heads.values(0));
        let store = Store { data: qkv, width: self.heads.width(), keys, values, kept: &[] };
        let (out, logsumexp) = forward::forward(qkv, n, &queries, store, self.heads);
        let _ = self.logsumexp.set(logsumexp);
        Ok((CpuStorage::F32(out), Shape::from((n, self.heads.q * self.heads.dim))))
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let Some(logsumexp) = self.logsumexp.get() else { bail!("attention: no forward came first") };
        let g = g.contiguous()?;
        let read = |t| values("forest_attention", t);
        let saved = backward::Saved { qkv: &read(qkv)?, out: &read(out)?, g: &read(&g)?, logsumexp };
        gradient(backward::backward(&saved, &self.segments, self.heads), qkv.shape())
    }
}
