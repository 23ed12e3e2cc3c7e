//! Attention of a batch that continues prefixes of earlier batches, whose keys and values were kept in blocks.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::forward::{Queries, Store, forward};
use super::{Heads, Segment, chain, check_order};
use crate::cpu::values;

/// Tokens of a kept block.
pub const BLOCK: usize = 16;

/// [`super::forest_attention`], the same bits, where part of the forest is not in the batch.
///
/// `qkv [N, (q_heads + 2 kv_heads) · head_dim]`, rotated, f32. Each of `kept` holds the keys and values of [`BLOCK`] tokens,
/// `[BLOCK, 2 · kv_heads · head_dim]`, as [`keys_and_values`] gives them; a segment in block `i` starts at row `N + i · BLOCK`.
/// Gives `[N, q_heads · head_dim]`. No gradients.
pub fn prefix_attention(
    qkv: &Tensor,
    segments: &[Segment],
    kept: &[&[f32]],
    q_heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let heads = Heads::new(q_heads, kv_heads, width, window)?;
    check(segments, kept, n, heads)?;
    let qkv = qkv.contiguous()?;
    let qkv = values("prefix attention", &qkv)?;
    let fresh = segments.iter().enumerate().filter(|(_, s)| s.start < n);
    let fresh: Vec<_> = fresh.map(|(i, s)| (s, chain(segments, i))).collect();
    let queries: Vec<_> = fresh
        .iter()
        .map(|(s, chain)| Queries { chain, row: s.start, len: s.len, position: s.position })
        .collect();
    let store = Store { data: &qkv, width, keys: heads.keys(0), values: heads.values(0), kept };
    let (out, _) = forward(&qkv, n, &queries, store, heads);
    Tensor::from_vec(out, (n, heads.q * heads.dim), &Device::Cpu)
}

/// Keys and values of some rows of a rotated `qkv`, for each of `blocks` its rows' `[rows, 2 · kv_heads · head_dim]`.
pub fn keys_and_values(
    qkv: &Tensor,
    blocks: &[&[u32]],
    q_heads: usize,
    kv_heads: usize,
) -> Result<Vec<Vec<f32>>> {
    let (n, width) = qkv.dims2()?;
    let heads = Heads::new(q_heads, kv_heads, width, None)?;
    if let Some(row) = blocks.iter().copied().flatten().find(|row| **row as usize >= n) {
        bail!("keys and values of row {row} of {n}");
    }
    let qkv = qkv.contiguous()?;
    let qkv = values("keys and values", &qkv)?;
    let part = |row: &u32| &qkv[*row as usize * width..][heads.keys(0)..width];
    // Copies into new memory, the more of it the longer the prompts: one thread would keep the others waiting.
    Ok(blocks.par_iter().map(|rows| rows.iter().map(part).collect::<Vec<_>>().concat()).collect())
}

/// The fresh segments cover the rows in order; the others lie in blocks.
fn check(segments: &[Segment], kept: &[&[f32]], n: usize, heads: Heads) -> Result<()> {
    check_order(segments)?;
    let size = BLOCK * 2 * heads.kv * heads.dim;
    if let Some(block) = kept.iter().find(|block| block.len() != size) {
        bail!("attention: a kept block of {} numbers, expected {size}", block.len());
    }
    let end = n + kept.len() * BLOCK;
    let mut covered = 0;
    for s in segments {
        match s.start < n {
            true if s.start == covered => covered += s.len,
            false if s.start + s.len <= end => {}
            _ => bail!("attention: {s:?} of {n} rows and {} kept blocks", kept.len()),
        }
    }
    if covered != n {
        bail!("attention: segments cover {covered} of {n} rows");
    }
    Ok(())
}
