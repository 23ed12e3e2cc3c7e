//! Keys and values kept from earlier tokens: incremental decoding, one row of work per new token.

use candle_core::{Device, Result, Tensor, bail};

use super::forward::{Queries, Store, forward};
use super::{Heads, Segment, chain, check_order};
use crate::cpu::values;

/// Keys and values of one layer, one row a token. A [`Segment`]'s `start` is the row of its first token here; rows
/// of different segments need not follow each other, so that each may have room to grow.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// `[rows, 2 · kv_heads · head_dim]`, keys first.
    data: Vec<f32>,
}

/// New tokens: the last `len` of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// Index of the segment.
    pub segment: usize,
    /// How many of its tokens are new.
    pub len: usize,
}

impl KvCache {
    /// Stores the keys and values of new tokens, then lets them attend to their ancestors, the earlier tokens of their
    /// segment and themselves, causally.
    ///
    /// `qkv [N, (q_heads + 2 kv_heads) · head_dim]`, rotated, f32, holds the tokens of `fresh` in that order. Gives
    /// `[N, q_heads · head_dim]`, the same bits as [`super::forest_attention`] gives for the whole at once. No gradients.
    pub fn attend(
        &mut self,
        qkv: &Tensor,
        segments: &[Segment],
        fresh: &[Fresh],
        q_heads: usize,
        kv_heads: usize,
        window: Option<usize>,
    ) -> Result<Tensor> {
        let (n, width) = qkv.dims2()?;
        let heads = Heads::new(q_heads, kv_heads, width, window)?;
        check(segments, fresh, n)?;
        let qkv = qkv.contiguous()?;
        let qkv = values("cached attention", &qkv)?;
        let kv = 2 * heads.kv * heads.dim;
        let rows = segments.iter().map(|s| s.start + s.len).max().unwrap_or(0);
        if self.data.len() < rows * kv {
            self.data.resize(rows * kv, 0.0);
        }
        let chains: Vec<_> = fresh.iter().map(|f| chain(segments, f.segment)).collect();
        let (mut queries, mut row) = (Vec::with_capacity(fresh.len()), 0);
        for (f, chain) in fresh.iter().zip(&chains) {
            let segment = &segments[f.segment];
            let old = segment.len - f.len;
            for i in 0..f.len {
                let from = &qkv[(row + i) * width..][heads.keys(0)..width];
                self.data[(segment.start + old + i) * kv..][..kv].copy_from_slice(from);
            }
            queries.push(Queries { chain, row, len: f.len, position: segment.position + old });
            row += f.len;
        }
        let store = Store { data: &self.data, width: kv, keys: 0, values: heads.kv * heads.dim, kept: &[] };
        let (out, _) = forward(&qkv, n, &queries, store, heads);
        Tensor::from_vec(out, (n, heads.q * heads.dim), &Device::Cpu)
    }
}

fn check(segments: &[Segment], fresh: &[Fresh], n: usize) -> Result<()> {
    check_order(segments)?;
    if let Some(f) = fresh.iter().find(|f| segments.get(f.segment).is_none_or(|s| f.len > s.len)) {
        bail!("attention: {f:?} of {} segments", segments.len());
    }
    match fresh.iter().map(|f| f.len).sum::<usize>() {
        new if new == n => Ok(()),
        new => bail!("attention: {new} new tokens in {n} rows"),
    }
}
