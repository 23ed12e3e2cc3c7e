//! Causal attention over a forest of token segments, with online softmax and no score matrix.
//!
//! A segment's queries see their ancestors' keys and values and their own, causally. Keys are walked in blocks of
//! [`KEYS`] absolute positions, whichever segments those positions lie in, so that a trajectory's bits
//! do not depend on where the forest cut its prefix.
#![allow(unsafe_code)]

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::{Isa, multiversion};
use crate::cpu::tile::{Line, MAX_ROWS, Tile, WIDTH, floats_mut, multiply};
use crate::cpu::{f32_slice, math, output};

/// Key positions of one block.
const KEYS: usize = 64;
/// Query positions of one task.
const QUERIES: usize = 64;

/// A run of tokens computed once: rows `start .. start + len` of the packed batch, at positions `position ..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First row in the packed batch.
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
    segments: &[Segment],
    q_heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    qkv.apply_op1_no_bwd(&Attention { segments, q_heads, kv_heads, window })
}

struct Attention<'a> {
    segments: &'a [Segment],
    q_heads: usize,
    kv_heads: usize,
    window: Option<usize>,
}

/// Some queries of one segment for one key/value head.
struct Task<'a> {
    /// Root first: `(first position, first row)` of the segment's ancestors and itself.
    chain: &'a [(usize, usize)],
    row: usize,
    len: usize,
    position: usize,
    kv_head: usize,
}

impl Attention<'_> {
    fn check(&self, n: usize) -> Result<()> {
        let mut covered = 0;
        for (i, s) in self.segments.iter().enumerate() {
            let position = match s.parent {
                None => 0,
                Some(p) if p < i => self.segments[p].position + self.segments[p].len,
                Some(p) => bail!("attention: segment {i} has parent {p}"),
            };
            if s.start != covered || s.position != position {
                bail!("attention: segment {i} is {s:?}, expected start {covered}, position {position}");
            }
            covered += s.len;
        }
        if covered != n {
            bail!("attention: segments cover {covered} of {n} rows");
        }
        Ok(())
    }

    fn chain(&self, segment: usize) -> Vec<(usize, usize)> {
        let mut chain = Vec::new();
        let mut at = Some(segment);
        while let Some(i) = at {
            chain.push((self.segments[i].position, self.segments[i].start));
            at = self.segments[i].parent;
        }
        chain.reverse();
        chain
    }
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "forest_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = f32_slice("forest_attention", qkv, layout)?;
        let (n, width) = layout.shape().dims2()?;
        let heads = self.q_heads + 2 * self.kv_heads;
        if self.kv_heads == 0
            || !self.q_heads.is_multiple_of(self.kv_heads)
            || !width.is_multiple_of(heads)
            || width == 0
        {
            bail!("attention: {} query and {} key heads in a width of {width}", self.q_heads, self.kv_heads);
        }
        self.check(n)?;
        let head = width / heads;
        let chains: Vec<_> = (0..self.segments.len()).map(|i| self.chain(i)).collect();
        let mut tasks = Vec::new();
        for (segment, chain) in self.segments.iter().zip(&chains) {
            for offset in (0..segment.len).step_by(QUERIES) {
                for kv_head in 0..self.kv_heads {
                    tasks.push(Task {
                        chain,
                        row: segment.start + offset,
                        len: QUERIES.min(segment.len - offset),
                        position: segment.position + offset,
                        kv_head,
                    });
                }
            }
        }
        // Longest first, so that no core is left with a long one at the end.
        tasks.sort_by_key(|t| std::cmp::Reverse((t.position + t.len) * t.len));
        let fill = |out| {
            tasks.par_iter().with_max_len(1).for_each_init(
                || Scratch::new(head, self.q_heads / self.kv_heads),
                |scratch, task| self.run(task, qkv, head, scratch, out),
            );
        };
        // SAFETY: the tasks cover every row of every query head.
        let data = unsafe { output::build(n * self.q_heads * head, fill) };
        Ok((CpuStorage::F32(data), Shape::from((n, self.q_heads * head))))
    }
}

/// One thread's working memory, O(head_dim), whatever the sequence length.
struct Scratch {
    /// Queries, scaled, `[QUERIES · group, head]`.
    q: Vec<f32>,
    /// Keys of a block as two panels `[head, WIDTH]`.
    k: Vec<Line>,
    /// Values of a block as ⌈head/32⌉ panels `[KEYS, WIDTH]`.
    v: Vec<Line>,
    /// Unnormalised output, `[QUERIES · group, head]`.
    acc: Vec<f32>,
    /// Running maximum and Σexp of each query row.
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl Scratch {
    fn new(head: usize, group: usize) -> Self {
        let rows = QUERIES * group;
        Self {
            q: vec![0.0; rows * head],
            k: vec![Line([0.0; 16]); KEYS * head / 16],
            v: vec![Line([0.0; 16]); head.div_ceil(WIDTH) * KEYS * WIDTH / 16],
            acc: vec![0.0; rows * head],
            max: vec![0.0; rows],
            sum: vec![0.0; rows],
        }
    }
}

impl Attention<'_> {
    fn run(&self, task: &Task<'_>, qkv: &[f32], head: usize, s: &mut Scratch, out: output::Output) {
        let isa = Isa::detect();
        let group = self.q_heads / self.kv_heads;
        let width = (self.q_heads + 2 * self.kv_heads) * head;
        let rows = task.len * group;
        let scale = 1.0 / (head as f32).sqrt();
        for i in 0..rows {
            let from = (task.row + i / group) * width + (task.kv_head * group + i % group) * head;
            let to = &mut s.q[i * head..(i + 1) * head];
            to.iter_mut().zip(&qkv[from..from + head]).for_each(|(q, x)| *q = x * scale);
        }
        s.acc[..rows * head].fill(0.0);
        s.max[..rows].fill(f32::NEG_INFINITY);
        s.sum[..rows].fill(0.0);

        let end = task.position + task.len;
        let begin = self.window.map_or(0, |w| (task.position + 1).saturating_sub(w));
        for block in begin / KEYS..end.div_ceil(KEYS) {
            let keys = block * KEYS;
            self.gather(task, qkv, head, keys..(keys + KEYS).min(end), s);
            for first in (0..rows).step_by(MAX_ROWS) {
                let count = MAX_ROWS.min(rows - first);
                if task.position + (first + count - 1) / group < keys {
                    continue; // the whole tile lies before this block
                }
                let mut scores = [0.0f32; MAX_ROWS * KEYS];
                let mut tile = Tile::new();
                for half in 0..KEYS / WIDTH {
                    let panel = &s.k[half * head * WIDTH / 16..];
                    multiply(isa, &s.q[first * head..], head, count, head, panel, &mut tile);
                    for i in 0..count {
                        scores[i * KEYS + half * WIDTH..][..WIDTH].copy_from_slice(tile.row(i));
                    }
                }
                for i in 0..count {
                    let row = first + i;
                    let position = task.position + row / group;
                    let low =
                        self.window.map_or(0, |w| (position + 1).saturating_sub(w)).saturating_sub(keys);
                    let high = (position + 1).saturating_sub(keys).min(KEYS);
                    softmax(
                        &mut scores[i * KEYS..(i + 1) * KEYS],
                        low.min(high),
                        high,
                        &mut s.max[row],
                        &mut s.sum[row],
                        &mut s.acc[row * head..(row + 1) * head],
                    );
                }
                for p in 0..head.div_ceil(WIDTH) {
                    let panel = &s.v[p * KEYS * WIDTH / 16..];
                    multiply(isa, &scores, KEYS, count, KEYS, panel, &mut tile);
                    let columns = p * WIDTH..((p + 1) * WIDTH).min(head);
                    for i in 0..count {
                        let acc = &mut s.acc[(first + i) * head..][columns.clone()];
                        acc.iter_mut().zip(tile.row(i)).for_each(|(a, o)| *a += o);
                    }
                }
            }
        }
        for i in 0..rows {
            let at = (task.row + i / group) * self.q_heads * head + (task.kv_head * group + i % group) * head;
            // SAFETY: each (row, query head) belongs to one task.
            let y = unsafe { out.slice(at, head) };
            let norm = 1.0 / s.sum[i];
            y.iter_mut().zip(&s.acc[i * head..]).for_each(|(y, a)| *y = a * norm);
        }
    }

    /// Packs the keys and values at `positions` into panels; positions past the end are zeros.
    fn gather(
        &self,
        task: &Task<'_>,
        qkv: &[f32],
        head: usize,
        positions: std::ops::Range<usize>,
        s: &mut Scratch,
    ) {
        let width = (self.q_heads + 2 * self.kv_heads) * head;
        let k_column = (self.q_heads + task.kv_head) * head;
        let v_column = k_column + self.kv_heads * head;
        let (k, v) = (floats_mut(&mut s.k), floats_mut(&mut s.v));
        if positions.len() < KEYS {
            k.fill(0.0);
            v.fill(0.0);
        }
        let mut link = task.chain.iter().rposition(|(first, _)| *first <= positions.start).unwrap_or(0);
        for (j, position) in positions.enumerate() {
            while task.chain.get(link + 1).is_some_and(|(first, _)| *first <= position) {
                link += 1;
            }
            let (first, row) = task.chain[link];
            let row = &qkv[(row + position - first) * width..][..width];
            let panel = &mut k[j / WIDTH * head * WIDTH + j % WIDTH..];
            for (d, x) in row[k_column..k_column + head].iter().enumerate() {
                panel[d * WIDTH] = *x;
            }
            for (p, part) in row[v_column..v_column + head].chunks(WIDTH).enumerate() {
                v[p * KEYS * WIDTH + j * WIDTH..][..part.len()].copy_from_slice(part);
            }
        }
    }
}

multiversion! {
    /// Scores to weights `exp(s − max)` in place, zero outside `low .. high`; the row's state moves to the new maximum.
    fn softmax(scores: &mut [f32], low: usize, high: usize, max: &mut f32, sum: &mut f32, acc: &mut [f32]) {
        for (j, s) in scores.iter_mut().enumerate() {
            *s = if j >= low && j < high { *s } else { f32::NEG_INFINITY };
        }
        let block = math::max(scores);
        if block == f32::NEG_INFINITY {
            scores.fill(0.0); // nothing here is seen by this row
            return;
        }
        let new = if block > *max { block } else { *max };
        let correction = math::exp(*max - new);
        let mut lanes = [0.0f32; math::LANES];
        for chunk in scores.chunks_exact_mut(math::LANES) {
            for (l, s) in lanes.iter_mut().zip(chunk) {
                *s = math::exp(*s - new);
                *l += *s;
            }
        }
        *sum = *sum * correction + math::tree(lanes, |a, b| a + b);
        *max = new;
        for a in acc {
            *a *= correction;
        }
    }
}
