//! The way back. With weights `P = exp(q·k/√d − logsumexp)` and `D = Σ g ⊙ out` per row:
//! `dV = Pᵀ g`, `dS = P ⊙ (g Vᵀ − D)`, `dQ = dS K / √d`, `dK = dSᵀ Q / √d`.
//!
//! A tree of the forest and a key/value head are one task: it owns those columns of those rows, walks them in one
//! order, and so gives the same bits with any number of threads.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::{Chain, Heads, KEYS, QUERIES, Segment, chain, columns, rows};
use crate::cpu::isa::{Isa, multiversion};
use crate::cpu::output::Output;
use crate::cpu::tile::{Line, MAX_ROWS, Tile, WIDTH, floats_mut, multiply};
use crate::cpu::{math, output};

/// What the forward left: its input, its output, the output's gradient, the rows' logsumexp.
pub(super) struct Saved<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) out: &'a [f32],
    pub(super) g: &'a [f32],
    pub(super) logsumexp: &'a [f32],
}

/// The gradient of `qkv`.
pub(super) fn backward(saved: &Saved<'_>, segments: &[Segment], heads: Heads) -> Vec<f32> {
    let mut roots = Vec::with_capacity(segments.len());
    let (mut trees, mut covered): (Vec<Vec<usize>>, usize) = (Vec::new(), 0);
    for (i, segment) in segments.iter().enumerate() {
        assert!(segment.start == covered, "a segment from row {}, after {covered}", segment.start);
        covered += segment.len;
        let tree = segment.parent.map_or(trees.len(), |parent| roots[parent]);
        roots.push(tree);
        if tree == trees.len() {
            trees.push(Vec::new());
        }
        trees[tree].push(i);
    }
    assert!(covered * heads.width() == saved.qkv.len(), "segments of {covered} rows");
    let mut tasks: Vec<_> =
        trees.iter().flat_map(|tree| (0..heads.kv).map(move |head| (tree, head))).collect();
    tasks.sort_by_key(|(tree, _)| std::cmp::Reverse(tree.iter().map(|i| segments[*i].len).sum::<usize>()));
    let fill = |dqkv: Output| {
        tasks.par_iter().with_max_len(1).for_each_init(
            || Scratch::new(heads),
            |scratch, (tree, kv_head)| {
                let mut back = Back { saved, heads, kv_head: *kv_head, dqkv, s: scratch };
                back.clear(tree.iter().map(|i| &segments[*i]));
                for i in tree.iter() {
                    back.segment(&segments[*i], &chain(segments, *i));
                }
            },
        );
    };
    // SAFETY: each row is of one segment, as was just asserted, and each segment of one tree; `clear` sets every column of its
    // rows to zero before anything is added.
    unsafe { output::build(saved.qkv.len(), fill) }
}

/// One thread's working memory, O(head_dim). Rows are `QUERIES · group` queries, head by head.
struct Scratch {
    /// Scaled queries and the output's gradient, `[rows, head]`.
    q: Vec<f32>,
    g: Vec<f32>,
    /// The same as panels `[rows, WIDTH]`, to be multiplied from the left by the keys' side.
    q_panels: Vec<Line>,
    g_panels: Vec<Line>,
    /// `D` of each row.
    along: Vec<f32>,
    dq: Vec<f32>,
    /// A block of keys and of values as panels `[head, WIDTH]`, for scores.
    k: Vec<Line>,
    v: Vec<Line>,
    /// The keys as panels `[KEYS, WIDTH]`, for `dQ`.
    k_rows: Vec<Line>,
    /// Weights and `dS` of the block, `[KEYS, rows]`.
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Scratch {
    fn new(heads: Heads) -> Self {
        let (head, rows) = (heads.dim, QUERIES * heads.group());
        let lines = |floats: usize| vec![Line([0.0; 16]); floats / 16];
        let columns = head.div_ceil(WIDTH) * WIDTH;
        Self {
            q: vec![0.0; rows * head],
            g: vec![0.0; rows * head],
            q_panels: lines(rows * columns),
            g_panels: lines(rows * columns),
            along: vec![0.0; rows],
            dq: vec![0.0; rows * head],
            k: lines(KEYS * head),
            v: lines(KEYS * head),
            k_rows: lines(KEYS * columns),
            p: vec![0.0; KEYS * rows],
            ds: vec![0.0; KEYS * rows],
        }
    }
}

struct Back<'a> {
    saved: &'a Saved<'a>,
    heads: Heads,
    kv_head: usize,
    dqkv: Output,
    s: &'a mut Scratch,
}

impl Back<'_> {
    /// This task's part of a row of the gradient: `len` numbers from `column`.
    #[allow(clippy::mut_from_ref)]
    fn part(&self, row: usize, column: usize, len: usize) -> &mut [f32] {
        // SAFETY: only this task touches the columns of its heads in the rows of its tree, one part at a time;
        // `clear` has written them.
        unsafe { self.dqkv.slice(row * self.heads.width() + column, len) }
    }

    /// Column of the first query head that reads this key/value head, and the width of all that do.
    fn queries(&self) -> (usize, usize) {
        let width = self.heads.group() * self.heads.dim;
        (self.kv_head * width, width)
    }

    fn clear<'a>(&self, segments: impl Iterator<Item = &'a Segment>) {
        let (first, width) = self.queries();
        for row in segments.flat_map(|s| s.start..s.start + s.len) {
            self.part(row, first, width).fill(0.0);
            self.part(row, self.heads.keys(self.kv_head), self.heads.dim).fill(0.0);
            self.part(row, self.heads.values(self.kv_head), self.heads.dim).fill(0.0);
        }
    }

    fn segment(&mut self, segment: &Segment, chain: &Chain) {
        for offset in (0..segment.len).step_by(QUERIES) {
            let len = QUERIES.min(segment.len - offset);
            let position = segment.position + offset;
            self.load_queries(segment.start + offset, len);
            for keys in self.heads.blocks(position, position + len) {
                let positions = keys..(keys + KEYS).min(position + len);
                self.load_keys(chain, positions.clone());
                self.weights(segment.start + offset, len, position, keys);
                self.add_keys(chain, positions, len);
                self.add_queries(len);
            }
            let (first, width) = self.queries();
            let scale = self.heads.scale();
            for i in 0..len {
                let to = self.part(segment.start + offset + i, first, width);
                to.iter_mut().zip(&self.s.dq[i * width..]).for_each(|(to, dq)| *to = dq * scale);
            }
        }
    }

    /// Queries `row .. row + len` and what belongs to them; `dq` starts at zero.
    fn load_queries(&mut self, row: usize, len: usize) {
        let (head, group, scale) = (self.heads.dim, self.heads.group(), self.heads.scale());
        let (first, width) = self.queries();
        let s = &mut *self.s;
        for i in 0..len {
            let at = (row + i) * self.heads.q * head + first;
            let g = &self.saved.g[at..at + width];
            let out = &self.saved.out[at..at + width];
            let q = &self.saved.qkv[(row + i) * self.heads.width() + first..][..width];
            s.g[i * width..][..width].copy_from_slice(g);
            s.q[i * width..][..width].iter_mut().zip(q).for_each(|(to, q)| *to = q * scale);
            for h in 0..group {
                let dot = g[h * head..][..head].iter().zip(&out[h * head..]).map(|(g, o)| g * o).sum();
                s.along[i * group + h] = dot;
            }
        }
        let rows = len * group;
        s.dq[..rows * head].fill(0.0);
        to_panels(&s.q[..rows * head], head, &mut s.q_panels);
        to_panels(&s.g[..rows * head], head, &mut s.g_panels);
    }

    /// The keys and values at `positions`; past their end zeros.
    fn load_keys(&mut self, chain: &Chain, positions: std::ops::Range<usize>) {
        let (head, width) = (self.heads.dim, self.heads.width());
        let (k_column, v_column) = (self.heads.keys(self.kv_head), self.heads.values(self.kv_head));
        let s = &mut *self.s;
        let (k, v, k_rows) = (floats_mut(&mut s.k), floats_mut(&mut s.v), floats_mut(&mut s.k_rows));
        if positions.len() < KEYS {
            k.fill(0.0);
            v.fill(0.0);
            k_rows.fill(0.0);
        }
        let (mut keys, mut values) = ([&[][..]; KEYS], [&[][..]; KEYS]);
        let count = positions.len();
        for (j, row) in rows(chain, positions).enumerate() {
            let row = &self.saved.qkv[row * width..][..width];
            keys[j] = &row[k_column..k_column + head];
            values[j] = &row[v_column..v_column + head];
            for (p, part) in row[k_column..k_column + head].chunks(WIDTH).enumerate() {
                k_rows[p * KEYS * WIDTH + j * WIDTH..][..part.len()].copy_from_slice(part);
            }
        }
        columns(k, head, &keys[..count]);
        columns(v, head, &values[..count]);
    }

    /// `P` and `dS` of the queries against the loaded block.
    fn weights(&mut self, row: usize, len: usize, position: usize, keys: usize) {
        let isa = Isa::detect();
        let (head, group) = (self.heads.dim, self.heads.group());
        let count = len * group;
        let s = &mut *self.s;
        let (mut scores, mut dp) = (Tile::new(), Tile::new());
        for first in (0..count).step_by(isa.rows()) {
            let tile_rows = isa.rows().min(count - first);
            for half in 0..KEYS / WIDTH {
                let panel = half * head * WIDTH / 16;
                multiply(isa, &s.q[first * head..], head, tile_rows, head, &s.k[panel..], &mut scores);
                multiply(isa, &s.g[first * head..], head, tile_rows, head, &s.v[panel..], &mut dp);
                for i in 0..tile_rows {
                    let r = first + i;
                    let seen = self.heads.seen(position + r / group, keys);
                    let head_row = (row + r / group) * self.heads.q + self.kv_head * group + r % group;
                    let (mut p, mut ds) = ([0.0; WIDTH], [0.0; WIDTH]);
                    let logsumexp = self.saved.logsumexp[head_row];
                    slopes(scores.row(i), dp.row(i), logsumexp, s.along[r], &mut p, &mut ds);
                    for j in 0..WIDTH {
                        let (key, is_seen) = (half * WIDTH + j, seen.contains(&(half * WIDTH + j)));
                        s.p[key * count + r] = if is_seen { p[j] } else { 0.0 };
                        s.ds[key * count + r] = if is_seen { ds[j] } else { 0.0 };
                    }
                }
            }
        }
    }

    /// Adds `dSᵀ Q` and `Pᵀ g` to the keys and values of the block.
    fn add_keys(&mut self, chain: &Chain, positions: std::ops::Range<usize>, len: usize) {
        let isa = Isa::detect();
        let (head, count) = (self.heads.dim, len * self.heads.group());
        let columns = [self.heads.keys(self.kv_head), self.heads.values(self.kv_head)];
        let mut tile = Tile::new();
        let targets: Vec<usize> = rows(chain, positions).collect();
        let s = &*self.s;
        for ((left, panels), column) in [(&s.ds, &s.q_panels), (&s.p, &s.g_panels)].into_iter().zip(columns) {
            for first in (0..targets.len()).step_by(isa.rows()) {
                let tile_rows = isa.rows().min(targets.len() - first);
                for d in (0..head).step_by(WIDTH) {
                    let panel = &panels[d * count / 16..];
                    multiply(isa, &left[first * count..], count, tile_rows, count, panel, &mut tile);
                    for i in 0..tile_rows {
                        let to = self.part(targets[first + i], column + d, WIDTH.min(head - d));
                        to.iter_mut().zip(tile.row(i)).for_each(|(to, v)| *to += v);
                    }
                }
            }
        }
    }

    /// Adds `dS K` to `dq`.
    fn add_queries(&mut self, len: usize) {
        let isa = Isa::detect();
        let (head, count) = (self.heads.dim, len * self.heads.group());
        let s = &mut *self.s;
        let mut tile = Tile::new();
        let mut ds = [0.0; MAX_ROWS * KEYS];
        for first in (0..count).step_by(isa.rows()) {
            let tile_rows = isa.rows().min(count - first);
            for i in 0..tile_rows {
                for key in 0..KEYS {
                    ds[i * KEYS + key] = s.ds[key * count + first + i];
                }
            }
            for d in (0..head).step_by(WIDTH) {
                let panel = &s.k_rows[d * KEYS / 16..];
                multiply(isa, &ds, KEYS, tile_rows, KEYS, panel, &mut tile);
                for i in 0..tile_rows {
                    let to = &mut s.dq[(first + i) * head + d..][..WIDTH.min(head - d)];
                    to.iter_mut().zip(tile.row(i)).for_each(|(to, v)| *to += v);
                }
            }
        }
    }
}

/// `x [rows, columns]` as panels `[rows, WIDTH]`, the last padded with what was there: its columns are not read.
fn to_panels(x: &[f32], columns: usize, panels: &mut [Line]) {
    let panels = floats_mut(panels);
    let rows = x.len() / columns.max(1);
    for (i, row) in x.chunks_exact(columns).enumerate() {
        for (p, part) in row.chunks(WIDTH).enumerate() {
            panels[(p * rows + i) * WIDTH..][..part.len()].copy_from_slice(part);
        }
    }
}

multiversion! {
    /// `P` and `dS` of one row's scores.
    fn slopes(scores: &[f32], dp: &[f32], logsumexp: f32, along: f32, p: &mut [f32; WIDTH], ds: &mut [f32; WIDTH]) {
        for j in 0..WIDTH {
            p[j] = math::exp(scores[j] - logsumexp);
            ds[j] = p[j] * (dp[j] - along);
        }
    }
}
