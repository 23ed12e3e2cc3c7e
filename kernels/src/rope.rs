//! Rotary position embedding (RoFormer, arXiv 2104.09864; half-split layout as in Hugging Face), with Qwen3's
//! per-head norm of queries and keys before it.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::f32_slice;
use crate::cpu::isa::multiversion;
use crate::rms_norm::normalize;

/// cos and sin of every position's angles, `[positions, head_dim / 2]` each, f32 rounded from f64.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles `position · inv_freq[i]` for `positions` positions.
    pub fn new(inv_freq: &[f64], positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| inv_freq.iter().map(move |f| (p as f64 * f).sin_cos()));
        let (sin, cos) = angles.map(|(s, c)| (s as f32, c as f32)).unzip();
        Self { cos, sin, half: inv_freq.len() }
    }

    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Rotates the queries and keys of `qkv [N, (q_heads + 2 kv_heads) · head_dim]` to `positions [N]`; values pass through.
/// `qk_norm` is Qwen3's `(q weight [head_dim], k weight [head_dim], ε)`. f32, same shape.
pub fn qk_rope(
    qkv: &Tensor,
    positions: &[u32],
    table: &RopeTable,
    q_heads: usize,
    kv_heads: usize,
    qk_norm: Option<(&[f32], &[f32], f32)>,
) -> Result<Tensor> {
    if let Some(p) = positions.iter().find(|p| **p as usize >= table.positions()) {
        bail!("rope: position {p}, the table ends at {}", table.positions());
    }
    qkv.apply_op1_no_bwd(&Rope { positions, table, q_heads, kv_heads, qk_norm })
}

struct Rope<'a> {
    positions: &'a [u32],
    table: &'a RopeTable,
    q_heads: usize,
    kv_heads: usize,
    qk_norm: Option<(&'a [f32], &'a [f32], f32)>,
}

impl CustomOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = f32_slice("qk_rope", qkv, layout)?;
        let (half, head) = (self.table.half, 2 * self.table.half);
        let width = (self.q_heads + 2 * self.kv_heads) * head;
        if layout.dims() != [self.positions.len(), width] || head == 0 {
            bail!("qk_rope: qkv {:?}, expected [{}, {width}]", layout.shape(), self.positions.len());
        }
        let mut out = vec![0.0f32; qkv.len()];
        out.par_chunks_mut(width).zip(qkv.par_chunks(width)).zip(self.positions).with_min_len(8).for_each(
            |((out, x), position)| {
                let at = *position as usize * half..(*position as usize + 1) * half;
                let (cos, sin) = (&self.table.cos[at.clone()], &self.table.sin[at]);
                let mut normed = vec![0.0f32; if self.qk_norm.is_some() { head } else { 0 }];
                let rotated = (self.q_heads + self.kv_heads) * head;
                for (h, (out, x)) in
                    out.chunks_exact_mut(head).zip(x[..rotated].chunks_exact(head)).enumerate()
                {
                    let x = match self.qk_norm {
                        Some((q, k, eps)) => {
                            normalize(x, if h < self.q_heads { q } else { k }, eps, &mut normed);
                            &normed
                        }
                        None => x,
                    };
                    rotate(x, cos, sin, out);
                }
                out[rotated..].copy_from_slice(&x[rotated..]);
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

multiversion! {
    fn rotate(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let half = cos.len();
        let (x0, x1) = x.split_at(half);
        let (o0, o1) = out.split_at_mut(half);
        for i in 0..half {
            o0[i] = x0[i] * cos[i] - x1[i] * sin[i];
            o1[i] = x1[i] * cos[i] + x0[i] * sin[i];
        }
    }
}
