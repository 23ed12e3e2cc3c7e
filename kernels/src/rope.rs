//! Rotary position embedding (RoFormer, arXiv 2104.09864; half-split layout as in Hugging Face), with Qwen3's
//! per-head norm of queries and keys before it.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, InplaceOp1, InplaceOp3, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::{f32_slice, f32_slice_mut, gradient, values};
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
/// f32, same shape. Gradients for `qkv` and the norms' weights; where none can be asked for, `qkv` is changed where it is:
/// nobody else may have it.
pub fn qk_rope(
    qkv: Tensor,
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
    let weights = match norm {
        None => None,
        Some(QkNorm { q: Norm::Cpu(q), k: Norm::Cpu(k), .. }) => Some((q, k)),
        #[cfg(feature = "cuda")]
        Some(norm) => bail!("qk_rope: qkv is on the CPU, {norm:?} is not"),
    };
    let is_tracked = |(q, k): (&Tensor, &Tensor)| q.track_op() || k.track_op();
    if qkv.track_op() || weights.is_some_and(is_tracked) {
        return match weights {
            None => qkv.apply_op1(rope),
            Some((q, k)) => qkv.apply_op3(q, k, rope),
        };
    }
    match weights {
        None => qkv.inplace_op1(&rope)?,
        Some((q, k)) => qkv.inplace_op3(q, k, &rope)?,
    }
    Ok(qkv)
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

    /// Changes `qkv`, of that shape, where it is.
    fn turn(&self, qkv: &mut [f32], shape: &Shape, norms: Norms<'_>) -> Result<()> {
        let (head, width) = (self.head(), self.width());
        if shape.dims() != [self.positions.len(), width] || head == 0 {
            bail!("qk_rope: qkv {shape:?}, expected [{}, {width}]", self.positions.len());
        }
        if norms.is_some_and(|(q, k)| q.len() != head || k.len() != head) {
            bail!("qk_rope: the norms' weights do not have the head's width of {head}");
        }
        let rotated = (self.q_heads + self.kv_heads) * head;
        let rows = qkv.par_chunks_mut(width).zip(&self.positions[..]);
        rows.with_min_len(8).for_each(|(row, position)| {
            let (cos, sin) = self.angles(*position);
            let mut plain = vec![0.0f32; if norms.is_some() { head } else { 0 }];
            for (h, x) in row[..rotated].chunks_exact_mut(head).enumerate() {
                if let Some((q, k)) = norms {
                    plain.copy_from_slice(x);
                    normalize(&plain, if h < self.q_heads { q } else { k }, self.eps, x);
                }
                rotate(x, cos, sin, 1.0);
            }
        });
        Ok(())
    }

    fn turned(&self, qkv: &[f32], shape: &Shape, norms: Norms<'_>) -> Result<(CpuStorage, Shape)> {
        let mut out = qkv.to_vec();
        self.turn(&mut out, shape, norms)?;
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
                            dx.copy_from_slice(&g[at]);
                            rotate(dx, cos, sin, -1.0);
                            continue;
                        };
                        back.copy_from_slice(&g[at.clone()]);
                        rotate(&mut back, cos, sin, -1.0);
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
        self.turned(f32_slice("qk_rope", qkv, layout)?, layout.shape(), None)
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
        self.turned(f32_slice("qk_rope", qkv, layout)?, layout.shape(), Some(norms))
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

impl InplaceOp1 for Rope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.turn(f32_slice_mut("qk_rope", qkv, layout)?, layout.shape(), None)
    }
}

impl InplaceOp3 for Rope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn cpu_fwd(
        &self,
        qkv: &mut CpuStorage,
        layout: &Layout,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<()> {
        let norms = (f32_slice("qk_rope", q, q_layout)?, f32_slice("qk_rope", k, k_layout)?);
        self.turn(f32_slice_mut("qk_rope", qkv, layout)?, layout.shape(), Some(norms))
    }
}

multiversion! {
    /// By the angles, or with `way` −1 back by them.
    fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], way: f32) {
        let (x0, x1) = x.split_at_mut(cos.len());
        for (((x0, x1), cos), sin) in x0.iter_mut().zip(x1).zip(cos).zip(sin) {
            let (a, b, sin) = (*x0, *x1, way * sin);
            *x0 = a * cos - b * sin;
            *x1 = b * cos + a * sin;
        }
    }
}
