//! A multiply of the decoder: projections that read the same input as one, with LoRA adapters where they are trained.

use candle_core::{Result, Tensor, bail};
use qrm_kernels::{Gates, Rows, Weight};

/// Low-rank change of one projection (LoRA, arXiv 2106.09685): `scale · (x Aᵀ) Bᵀ` is added to its output.
#[derive(Clone)]
pub(crate) struct Adapter {
    /// `[rank, in]`.
    pub(crate) a: Tensor,
    /// `[out, rank]`.
    pub(crate) b: Tensor,
    /// α / rank.
    pub(crate) scale: f64,
}

impl Adapter {
    fn detach(&self) -> Self {
        Self { a: self.a.detach(), b: self.b.detach(), scale: self.scale }
    }
}

/// The weights of projections that read the same input.
#[derive(Clone)]
pub(crate) enum Joined {
    /// As one.
    Fixed(Weight),
    /// Gates and ups, for [`Projection::gated`] alone.
    Gates(Gates),
    /// Each with a gradient of its own.
    Trained(Vec<Tensor>),
}

/// `x [N, in]` to `[N, Σ out]`.
#[derive(Clone)]
pub(crate) struct Projection {
    pub(crate) weight: Joined,
    /// Of each part, in order; none where the architecture has none, or the weight has them with it.
    pub(crate) bias: Vec<Tensor>,
    /// Outputs of each part, and its adapter where it has one.
    pub(crate) parts: Vec<(usize, Option<Adapter>)>,
}

impl Projection {
    pub(crate) fn forward(&self, x: &Rows, residual: Option<&Rows>) -> Result<Rows> {
        let weight = match &self.weight {
            Joined::Fixed(weight) => weight.clone(),
            Joined::Gates(weight) => bail!("projection: {weight:?} are for SwiGLU"),
            Joined::Trained(parts) => Weight::Trained(joined(parts)?),
        };
        let bias = if self.bias.is_empty() { None } else { Some(joined(&self.bias)?) };
        let y = x.linear(&weight, bias.as_ref(), residual)?;
        match self.adapters()? {
            None => Ok(y),
            Some((a, b, scale)) => {
                let down = (x.linear(&Weight::Trained(a), None, None)?.tensor()? * scale)?;
                Rows::from(down).linear(&Weight::Trained(b), None, Some(&y))
            }
        }
    }

    /// SwiGLU of what [`Projection::forward`] gives of gates and ups.
    pub(crate) fn gated(&self, x: &Rows) -> Result<Rows> {
        match &self.weight {
            Joined::Gates(weight) => x.gated(weight),
            _ => self.forward(x, None)?.swiglu(),
        }
    }

    /// The parts' adapters as one: A `[Σ rank, in]`, B `[Σ out, Σ rank]` with each part's own in its rows and columns.
    fn adapters(&self) -> Result<Option<(Tensor, Tensor, f64)>> {
        let there: Vec<&Adapter> = self.parts.iter().filter_map(|(_, adapter)| adapter.as_ref()).collect();
        let Some(first) = there.first() else { return Ok(None) };
        if let [(_, Some(only))] = &self.parts[..] {
            return Ok(Some((only.a.clone(), only.b.clone(), only.scale)));
        }
        let ranks = there.iter().map(|adapter| adapter.a.dim(0)).sum::<Result<usize>>()?;
        let (mut at, mut rows) = (0, Vec::with_capacity(self.parts.len()));
        for (out, adapter) in &self.parts {
            rows.push(match adapter {
                None => Tensor::zeros((*out, ranks), first.b.dtype(), first.b.device())?,
                Some(adapter) => {
                    let rank = adapter.a.dim(0)?;
                    at += rank;
                    adapter.b.pad_with_zeros(1, at - rank, ranks - at)?
                }
            });
        }
        let a = Tensor::cat(&there.iter().map(|adapter| &adapter.a).collect::<Vec<_>>(), 0)?;
        Ok(Some((a, Tensor::cat(&rows, 0)?, first.scale)))
    }

    /// The same numbers, not followed by autograd.
    pub(crate) fn detach(&self) -> Self {
        let detached = |tensors: &[Tensor]| tensors.iter().map(Tensor::detach).collect();
        Self {
            weight: match &self.weight {
                Joined::Fixed(weight) => Joined::Fixed(weight.detach()),
                Joined::Gates(weight) => Joined::Gates(weight.clone()),
                Joined::Trained(parts) => Joined::Trained(detached(parts)),
            },
            bias: detached(&self.bias),
            parts: self.parts.iter().map(|(out, a)| (*out, a.as_ref().map(Adapter::detach))).collect(),
        }
    }
}

fn joined(parts: &[Tensor]) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.clone()),
        _ => Tensor::cat(parts, 0),
    }
}
