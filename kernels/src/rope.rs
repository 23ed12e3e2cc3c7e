//! Rotary position embedding (RoFormer, arXiv 2104.09864; half-split layout as in Hugging Face), with Qwen3's
//! per-head norm of queries and keys before it.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::{f32_slice, gradient, values};
use crate::device::Norm;
use crate::rms_norm::{normalize, normalize_backward, total};

/// Rows of one task on the way back.
const TASK_ROWS: usize = 32;

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

    /// cos and sin, `[positions, head_dim / 2]` each.
    #[cfg(feature = "cuda")]
    pub(crate) fn tables(&self) -> (&[f32], &[f32], usize) {
        (&self.cos, &self.sin, self.half)
    }

    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Qwen3's norm of every query and key head, before the rotation.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// `[head_dim]`.
    pub q: Norm,
    /// `[head_dim]`.
    pub k: Norm,
    /// ε.
    pub eps: f32,
}

/// Rotates the queries and keys of `qkv [N, (q_heads + 2 kv_heads) · head_dim]` to `positions [N]`; values pass through.
/// f32, same shape. Gradients for `qkv` and the norms' weights.
pub fn qk_rope(
    qkv: &Tensor,
    positions: &Arc<[u32]>,
    table: &Arc<RopeTable>,
    q_heads: usize,
    kv_heads: usize,
    norm: Option<&QkNorm>,
) -> Result<Tensor> {
    if let Some(p) = positions.iter().find(|p| **p as usize >= table.positions()) {
        bail!("rope: position {p}, the table ends at {}", table.positions());
    }
    let rope = Rope {
        positions: positions.clone(),
        table: table.clone(),
        q_heads,
        kv_heads,
        eps: norm.map_or(0.0, |norm| norm.eps),
    };
    match norm {
        None => qkv.apply_op1(rope),
        Some(QkNorm { q: Norm::Cpu(q), k: Norm::Cpu(k), .. }) => qkv.apply_op3(q, k, rope),
        #[cfg(feature = "cuda")]
        Some(norm) => bail!("qk_rope: qkv is on the CPU, {norm:?} is not"),
    }
}

struct Rope {
    positions: Arc<[u32]>,
    table: Arc<RopeTable>,
    q_heads: usize,
    kv_heads: usize,
    eps: f32,
}

/// The weights of the heads' norms, queries' and keys'.
type Norms<'a> = Option<(&'a [f32], &'a [f32])>;

impl Rope {
    fn head(&self) -> usize {
        2 * self.table.half
    }

    fn width(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head()
    }

    fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.table.half;
        let at = position as usize * half..(position as usize + 1) * half;
        (&self.table.cos[at.clone()], &self.table.sin[at])
    }

    fn forward(&self, qkv: &[f32], shape: &Shape, norms: Norms<'_>) -> Result<(CpuStorage, Shape)> {
        let (head, width) = (self.head(), self.width());
        if shape.dims() != [self.positions.len(), width] || head == 0 {
            bail!("qk_rope: qkv {shape:?}, expected [{}, {width}]", self.positions.len());
        }
        if norms.is_some_and(|(q, k)| q.len() != head || k.len() != head) {
            bail!("qk_rope: the norms' weights do not have the head's width of {head}");
        }
        let rotated = (self.q_heads + self.kv_heads) * head;
        let mut out = vec![0.0f32; qkv.len()];
        let rows = out.par_chunks_mut(width).zip(qkv.par_chunks(width)).zip(&self.positions[..]);
        rows.with_min_len(8).for_each(|((out, x), position)| {
            let (cos, sin) = self.angles(*position);
            let mut normed = vec![0.0f32; if norms.is_some() { head } else { 0 }];
            for (h, (out, x)) in out.chunks_exact_mut(head).zip(x[..rotated].chunks_exact(head)).enumerate() {
                match norms {
                    Some((q, k)) => {
                        normalize(x, if h < self.q_heads { q } else { k }, self.eps, &mut normed);
                        rotate(&normed, cos, sin, 1.0, out);
                    }
                    None => rotate(x, cos, sin, 1.0, out),
                }
            }
            out[rotated..].copy_from_slice(&x[rotated..]);
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }

    /// The gradient of `qkv`, and of the norms' weights as `[q weight, k weight]`.
    fn backward(&self, qkv: &[f32], g: &[f32], norms: Norms<'_>) -> (Vec<f32>, Vec<f32>) {
        let (head, width) = (self.head(), self.width());
        let rotated = (self.q_heads + self.kv_heads) * head;
        let mut dx = vec![0.0f32; g.len()];
        let rows = dx.par_chunks_mut(width * TASK_ROWS).zip(qkv.par_chunks(width * TASK_ROWS));
        let rows = rows.zip(g.par_chunks(width * TASK_ROWS)).zip(self.positions.par_chunks(TASK_ROWS));
        let shares: Vec<Vec<f32>> = rows
            .map(|(((dx, x), g), positions)| {
                let mut dw = vec![0.0f32; if norms.is_some() { 2 * head } else { 0 }];
                let mut back = vec![0.0f32; head];
                for (i, position) in positions.iter().enumerate() {
                    let (cos, sin) = self.angles(*position);
                    let row = i * width..(i + 1) * width;
                    let (dx, x, g) = (&mut dx[row.clone()], &x[row.clone()], &g[row]);
                    for h in 0..self.q_heads + self.kv_heads {
                        let at = h * head..(h + 1) * head;
                        let dx = &mut dx[at.clone()];
                        let Some((q, k)) = norms else {
                            rotate(&g[at], cos, sin, -1.0, dx);
                            continue;
                        };
                        rotate(&g[at.clone()], cos, sin, -1.0, &mut back);
                        let (dq, dk) = dw.split_at_mut(head);
                        let (weight, dw) = if h < self.q_heads { (q, dq) } else { (k, dk) };
                        normalize_backward(&x[at], weight, self.eps, &back, dx, dw);
                    }
                    dx[rotated..].copy_from_slice(&g[rotated..]);
                }
                dw
            })
            .collect();
        let dw = if norms.is_some() { total(shares, 2 * head) } else { Vec::new() };
        (dx, dw)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(f32_slice("qk_rope", qkv, layout)?, layout.shape(), None)
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (dx, _) = self.backward(&values("qk_rope", qkv)?, &values("qk_rope", &g)?, None);
        gradient(dx, qkv.shape())
    }
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let norms = (f32_slice("qk_rope", q, q_layout)?, f32_slice("qk_rope", k, k_layout)?);
        self.forward(f32_slice("qk_rope", qkv, layout)?, layout.shape(), Some(norms))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        q: &Tensor,
        k: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let read = |t| values("qk_rope", t);
        let (dx, mut dq) = self.backward(&read(qkv)?, &read(&g)?, Some((&read(q)?, &read(k)?)));
        let dk = dq.split_off(self.head());
        Ok((gradient(dx, qkv.shape())?, gradient(dq, q.shape())?, gradient(dk, k.shape())?))
    }
}

multiversion! {
    /// By the angles, or with `way` −1 back by them.
    fn rotate(x: &[f32], cos: &[f32], sin: &[f32], way: f32, out: &mut [f32]) {
        let half = cos.len();
        let (x0, x1) = x.split_at(half);
        let (o0, o1) = out.split_at_mut(half);
        for i in 0..half {
            let sin = way * sin[i];
            o0[i] = x0[i] * cos[i] - x1[i] * sin;
            o1[i] = x1[i] * cos[i] + x0[i] * sin;
        }
    }
}
