//! [`token_reward()`](crate::token_reward()) with a way back, for training: logit, logsumexp and entropy of chosen tokens.
//!
//! The way back makes the logits again, a block of rows at a time, and never holds more than [`BLOCK`] of them. With
//! `p = softmax(Z)` and entropy H: `dZ = g_logit · onehot(target) + (g_logsumexp − g_H · (log p + H)) · p`, `dh = dZ W`,
//! `dW = dZᵀ h`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::isa::multiversion;
use crate::cpu::product::{product, weight_gradient};
use crate::cpu::{f32_slice, gradient, math, values};
use crate::linear::Weight;
use crate::panels::Panels;
use crate::token_reward::token_reward;

/// Most logits held at once, as elements.
const BLOCK: usize = 16 << 20;

/// For each row of `hidden [N, d]` and its target: `[logit, logsumexp, entropy]` over `weight [V, d]`, `[N, 3]`, f32.
/// Gradients for `hidden`, and for the weight where it is [`Weight::Trained`].
pub fn token_logits(hidden: &Tensor, weight: &Weight, targets: &[u32]) -> Result<Tensor> {
    let op = TokenLogits { panels: weight.panels()?, targets: targets.into() };
    match weight {
        Weight::Packed(_) => hidden.apply_op1(op),
        Weight::Trained(weight) => hidden.apply_op2(weight, op),
        #[cfg(feature = "cuda")]
        Weight::Cuda(weight) => bail!("token_logits: {weight:?} is on a GPU"),
    }
}

struct TokenLogits {
    panels: Arc<Panels>,
    targets: Arc<[u32]>,
}

impl TokenLogits {
    fn forward(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = f32_slice("token_logits", hidden, layout)?;
        let hidden = Tensor::from_slice(hidden, layout.shape(), &Device::Cpu)?;
        let scores = token_reward(&hidden, &self.panels, &self.targets)?;
        let each = scores.logit.iter().zip(&scores.logsumexp).zip(&scores.entropy);
        let rows = each.flat_map(|((z, l), h)| [*z, *l, *h]).collect();
        Ok((CpuStorage::F32(rows), Shape::from((self.targets.len(), 3))))
    }

    /// Gradients of `hidden` and, where asked for, of the weight.
    fn backward(
        &self,
        hidden: &Tensor,
        out: &Tensor,
        g: &Tensor,
        trained: bool,
    ) -> Result<[Option<Tensor>; 2]> {
        let g = g.to_dtype(DType::F32)?.contiguous()?;
        let read = |t| values("token_logits", t);
        let (h, out, g) = (read(hidden)?, read(out)?, read(&g)?);
        let (v, d) = (self.panels.out_dim(), self.panels.in_dim());
        if h.len() != self.targets.len() * d {
            bail!("token_logits: hidden {hidden:?} on the way back of {} targets", self.targets.len());
        }
        let sparse = g.chunks_exact(3).all(|g| g[1..] == [0.0, 0.0]);
        let (dh, dw) = match sparse {
            true => self.sparse(&h, &g, trained),
            false => {
                let back = self.panels.transposed();
                let (mut dh, mut dw) = (Vec::with_capacity(h.len()), None);
                let rows = (BLOCK / v.max(1)).clamp(1, 1024);
                for start in (0..self.targets.len()).step_by(rows) {
                    let part = start..(start + rows).min(self.targets.len());
                    let h = &h[part.start * d..part.end * d];
                    let mut dz = product(h, part.len(), &self.panels, None, None);
                    dz.par_chunks_mut(v).zip(part).for_each(|(dz, i)| {
                        let (out, g) = (&out[3 * i..][..3], &g[3 * i..][..3]);
                        match g[2] == 0.0 {
                            true => spread(dz, out[1], g[1]),
                            false => spread_entropy(dz, out[1], out[2], g[1], g[2]),
                        }
                        dz[self.targets[i] as usize] += g[0];
                    });
                    dh.extend(product(&dz, dz.len() / v, &back, None, None));
                    if trained {
                        dw = Some(weight_gradient(&dz, v, h, d, dw.as_deref()));
                    }
                }
                (dh, dw)
            }
        };
        let dw = dw.map(|dw| Tensor::from_vec(dw, (v, d), &Device::Cpu)).transpose()?;
        Ok([gradient(dh, hidden.shape())?, dw])
    }

    /// The same where only logits have a gradient, as in the Q-RM loss: a row of the weight per token.
    fn sparse(&self, h: &[f32], g: &[f32], trained: bool) -> (Vec<f32>, Option<Vec<f32>>) {
        let d = self.panels.in_dim();
        let mut dh = vec![0.0f32; h.len()];
        dh.par_chunks_mut(d.max(1)).zip(&self.targets[..]).zip(g.par_chunks_exact(3)).for_each(
            |((dh, target), g)| {
                self.panels.row(*target as usize, dh);
                dh.iter_mut().for_each(|x| *x *= g[0]);
            },
        );
        let dw = trained.then(|| {
            let mut dw = vec![0.0f32; self.panels.out_dim() * d];
            for ((h, target), g) in h.chunks_exact(d).zip(&self.targets[..]).zip(g.chunks_exact(3)) {
                let row = &mut dw[*target as usize * d..][..d];
                row.iter_mut().zip(h).for_each(|(dw, h)| *dw += g[0] * h);
            }
            dw
        });
        (dh, dw)
    }
}

multiversion! {
    /// Logits to `g · softmax`.
    fn spread(logits: &mut [f32], logsumexp: f32, g: f32) {
        for z in logits {
            *z = g * math::exp(*z - logsumexp);
        }
    }
}

multiversion! {
    /// Logits to `(g − g_entropy · (log p + H)) · p`.
    fn spread_entropy(logits: &mut [f32], logsumexp: f32, entropy: f32, g: f32, g_entropy: f32) {
        for z in logits {
            let log_p = *z - logsumexp;
            let p = math::exp(log_p);
            *z = if p > 0.0 { p * (g - g_entropy * (log_p + entropy)) } else { 0.0 };
        }
    }
}

impl CustomOp1 for TokenLogits {
    fn name(&self) -> &'static str {
        "token_logits"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(hidden, layout)
    }

    fn bwd(&self, hidden: &Tensor, out: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let [dh, _] = self.backward(hidden, out, g, false)?;
        Ok(dh)
    }
}

impl CustomOp2 for TokenLogits {
    fn name(&self) -> &'static str {
        "token_logits"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(hidden, layout)
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        _: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dh, dw] = self.backward(hidden, out, g, true)?;
        Ok((dh, dw))
    }
}
