//! The way there: one pass over the keys per block of queries, online softmax.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK, Chain, Heads, KEYS, QUERIES, columns, rows};
use crate::cpu::isa::{Isa, multiversion};
use crate::cpu::tile::{Line, MAX_ROWS, Tile, WIDTH, floats_mut, multiply};
use crate::cpu::{math, output};

/// Tasks that a thread should have at least.
const TASKS: usize = 4;

/// A run of queries of one segment: rows `row .. row + len` of `qkv`, at positions `position ..`.
pub(super) struct Queries<'a> {
    /// Where the keys they see lie.
    pub(super) chain: &'a Chain,
    pub(super) row: usize,
    pub(super) len: usize,
    pub(super) position: usize,
}

/// Where keys and values lie: rows of `width`, keys from one column, values from another; then rows kept elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Store<'a> {
    pub(super) data: &'a [f32],
    pub(super) width: usize,
    pub(super) keys: usize,
    pub(super) values: usize,
    /// Rows that follow those of `data`: blocks of [`BLOCK`], each row all keys, then all values.
    pub(super) kept: &'a [&'a [f32]],
}

impl<'a> Store<'a> {
    /// Keys and values of one head in a row.
    fn row(&self, row: usize, kv_head: usize, heads: Heads) -> (&'a [f32], &'a [f32]) {
        let (column, own) = (kv_head * heads.dim, self.data.len() / self.width);
        let (row, keys, values) = match row.checked_sub(own) {
            None => (&self.data[row * self.width..][..self.width], self.keys, self.values),
            Some(row) => {
                let width = 2 * heads.kv * heads.dim;
                (&self.kept[row / BLOCK][row % BLOCK * width..][..width], 0, width / 2)
            }
        };
        (&row[keys + column..][..heads.dim], &row[values + column..][..heads.dim])
    }
}

/// At most [`QUERIES`] queries for one key/value head.
struct Task<'a> {
    chain: &'a Chain,
    row: usize,
    len: usize,
    position: usize,
    kv_head: usize,
}

/// The outputs `[n, q_heads · head_dim]` and the rows' logsumexp `[n, q_heads]`. The queries cover rows `0 .. n` of `qkv`.
pub(super) fn forward(
    qkv: &[f32],
    n: usize,
    queries: &[Queries<'_>],
    store: Store<'_>,
    heads: Heads,
) -> (Vec<f32>, Vec<f32>) {
    let (mut tasks, mut covered) = (Vec::new(), 0);
    let most = positions(queries, heads);
    for q in queries {
        assert!(q.row == covered, "queries from row {}, after {covered}", q.row);
        covered += q.len;
        for offset in (0..q.len).step_by(most) {
            for kv_head in 0..heads.kv {
                tasks.push(Task {
                    chain: q.chain,
                    row: q.row + offset,
                    len: most.min(q.len - offset),
                    position: q.position + offset,
                    kv_head,
                });
            }
        }
    }
    assert!(covered == n, "queries of {covered} rows, of {n}");
    // Longest first, so that no core is left with a long one at the end.
    tasks.sort_by_key(|t| std::cmp::Reverse((t.position + t.len) * t.len));
    let mut logsumexp = Vec::new();
    let fill = |out: output::Output| {
        let each = |sums: output::Output| {
            tasks.par_iter().with_max_len(1).for_each(|task| {
                Scratch::with(heads, |scratch| run(task, qkv, store, heads, scratch, out, sums));
            });
        };
        // SAFETY: the tasks cover every row, as was just asserted, and every query head, each once.
        logsumexp = unsafe { output::build(n * heads.q, each) };
    };
    // SAFETY: as above.
    let out = unsafe { output::build(n * heads.q * heads.dim, fill) };
    (out, logsumexp)
}

/// Query positions of a task: [`QUERIES`], or fewer where there would be too few tasks for the threads, though no fewer than
/// repay that each packs its keys.
fn positions(queries: &[Queries<'_>], heads: Heads) -> usize {
    let tasks = |positions| heads.kv * queries.iter().map(|q| q.len.div_ceil(positions)).sum::<usize>();
    let wanted = TASKS * rayon::current_num_threads();
    let some = [QUERIES, QUERIES / 2, QUERIES / 4];
    some.into_iter().find(|positions| tasks(*positions) >= wanted).unwrap_or(QUERIES / 4)
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
    /// Of a tile's rows with a block's keys, `[MAX_ROWS, KEYS]`.
    scores: Vec<f32>,
    tile: Tile,
}

thread_local! {
    /// This thread's, of the heads that it was made for: a task is short beside what making one takes.
    static SCRATCH: RefCell<Option<(Heads, Scratch)>> = const { RefCell::new(None) };
}

impl Scratch {
    /// `work` with this thread's; it starts no other.
    fn with<T>(heads: Heads, work: impl FnOnce(&mut Self) -> T) -> T {
        SCRATCH.with_borrow_mut(|kept| match kept {
            Some((of, scratch)) if *of == heads => work(scratch),
            _ => work(&mut kept.insert((heads, Self::new(heads))).1),
        })
    }

    fn new(heads: Heads) -> Self {
        let (head, rows) = (heads.dim, QUERIES * heads.group());
        Self {
            q: vec![0.0; rows * head],
            k: vec![Line([0.0; 16]); KEYS * head / 16],
            v: vec![Line([0.0; 16]); head.div_ceil(WIDTH) * KEYS * WIDTH / 16],
            acc: vec![0.0; rows * head],
            max: vec![0.0; rows],
            sum: vec![0.0; rows],
            scores: vec![0.0; MAX_ROWS * KEYS],
            tile: Tile::new(),
        }
    }
}

fn run(
    task: &Task<'_>,
    qkv: &[f32],
    store: Store<'_>,
    heads: Heads,
    s: &mut Scratch,
    out: output::Output,
    logsumexp: output::Output,
) {
    let isa = Isa::detect();
    let (head, group, width, scale) = (heads.dim, heads.group(), heads.width(), heads.scale());
    let rows = task.len * group;
    for i in 0..rows {
        let from = (task.row + i / group) * width + (task.kv_head * group + i % group) * head;
        let to = &mut s.q[i * head..(i + 1) * head];
        scaled(to, &qkv[from..from + head], scale);
    }
    s.acc[..rows * head].fill(0.0);
    s.max[..rows].fill(f32::NEG_INFINITY);
    s.sum[..rows].fill(0.0);

    let end = task.position + task.len;
    for keys in heads.blocks(task.position, end) {
        gather(task, store, heads, keys..(keys + KEYS).min(end), s);
        for first in (0..rows).step_by(isa.rows()) {
            let count = isa.rows().min(rows - first);
            if task.position + (first + count - 1) / group < keys {
                continue; // the whole tile lies before this block
            }
            // Of the last row, which sees most; the keys after those weigh nothing in any row.
            let seen = heads.seen(task.position + (first + count - 1) / group, keys).end;
            let seen = seen.next_multiple_of(math::LANES);
            for half in 0..seen.div_ceil(WIDTH) {
                let panel = &s.k[half * head * WIDTH / 16..];
                multiply(isa, &s.q[first * head..], head, count, head, panel, &mut s.tile);
                for i in 0..count {
                    s.scores[i * KEYS + half * WIDTH..][..WIDTH].copy_from_slice(s.tile.row(i));
                }
            }
            let of_row: [Range<usize>; MAX_ROWS] =
                std::array::from_fn(|i| heads.seen(task.position + (first + i) / group, keys));
            let tile_rows = first..first + count;
            softmax(
                &mut s.scores,
                seen,
                &of_row[..count],
                &mut s.max[tile_rows.clone()],
                &mut s.sum[tile_rows.clone()],
                &mut s.acc[first * head..(first + count) * head],
            );
            for p in 0..head.div_ceil(WIDTH) {
                let panel = &s.v[p * KEYS * WIDTH / 16..];
                multiply(isa, &s.scores, KEYS, count, seen, panel, &mut s.tile);
                let columns = p * WIDTH..((p + 1) * WIDTH).min(head);
                add(&mut s.acc[first * head..(first + count) * head], head, columns, &s.tile);
            }
        }
    }
    for i in 0..rows {
        let at = (task.row + i / group) * heads.q * head + (task.kv_head * group + i % group) * head;
        // SAFETY: each (row, query head) belongs to one task.
        let y = unsafe { out.slice(at, head) };
        scaled(y, &s.acc[i * head..(i + 1) * head], 1.0 / s.sum[i]);
        // SAFETY: as above.
        let sum = unsafe { logsumexp.slice(at / head, 1) };
        sum[0] = s.max[i] + s.sum[i].ln();
    }
}

/// Packs the keys and values at `positions` into panels; positions past the end are zeros.
fn gather(task: &Task<'_>, store: Store<'_>, heads: Heads, positions: Range<usize>, s: &mut Scratch) {
    let head = heads.dim;
    let (k, v) = (floats_mut(&mut s.k), floats_mut(&mut s.v));
    if positions.len() < KEYS {
        k.fill(0.0);
        v.fill(0.0);
    }
    let mut keys = [&[][..]; KEYS];
    let count = positions.len();
    for (j, row) in rows(task.chain, positions).enumerate() {
        let (key, value) = store.row(row, task.kv_head, heads);
        keys[j] = key;
        for (p, part) in value.chunks(WIDTH).enumerate() {
            v[p * KEYS * WIDTH + j * WIDTH..][..part.len()].copy_from_slice(part);
        }
    }
    columns(k, head, &keys[..count]);
}

multiversion! {
    fn scaled(to: &mut [f32], from: &[f32], by: f32) {
        to.iter_mut().zip(from).for_each(|(y, x)| *y = x * by);
    }
}

multiversion! {
    /// A tile's rows to `columns` of the sums, `[rows, head]`.
    fn add(sums: &mut [f32], head: usize, columns: Range<usize>, tile: &Tile) {
        for (i, sums) in sums.chunks_exact_mut(head).enumerate() {
            let sums = &mut sums[columns.clone()];
            match <&mut [f32; WIDTH]>::try_from(&mut *sums) {
                Ok(sums) => sums.iter_mut().zip(tile.row(i)).for_each(|(sum, x)| *sum += x),
                Err(_) => sums.iter_mut().zip(tile.row(i)).for_each(|(sum, x)| *sum += x),
            }
        }
    }
}

multiversion! {
    /// A tile's scores `[rows, KEYS]`, of which the first `width` of a row are there, to weights `exp(s − max)` in place, zero
    /// but for the keys that the row has `seen`; the rows' states move to the new maxima.
    fn softmax(
        scores: &mut [f32], width: usize, seen: &[Range<usize>], max: &mut [f32], sum: &mut [f32], acc: &mut [f32],
    ) {
        let head = acc.len() / seen.len().max(1);
        for (i, (scores, seen)) in scores.chunks_exact_mut(KEYS).zip(seen).enumerate() {
            let scores = &mut scores[..width];
            if *seen != (0..width) {
                for (j, s) in scores.iter_mut().enumerate() {
                    *s = if seen.contains(&j) { *s } else { f32::NEG_INFINITY };
                }
            }
            let block = math::max(scores);
            if block == f32::NEG_INFINITY {
                scores.fill(0.0); // nothing here is seen by this row
                continue;
            }
            if block > max[i] {
                let correction = math::exp(max[i] - block);
                max[i] = block;
                sum[i] *= correction;
                acc[i * head..(i + 1) * head].iter_mut().for_each(|a| *a *= correction);
            }
            let mut lanes = [0.0f32; math::LANES];
            for chunk in scores.chunks_exact_mut(math::LANES) {
                for (l, s) in lanes.iter_mut().zip(chunk) {
                    *s = math::exp(*s - max[i]);
                    *l += *s;
                }
            }
            sum[i] += math::tree(lanes, |a, b| a + b);
        }
    }
}
