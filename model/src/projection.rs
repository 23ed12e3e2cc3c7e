//! A multiply of the decoder: projections that read the same input as one, with LoRA adapters where they are trained.

use candle_core::{Result, Tensor};
use qrm_kernels::{Weight, linear};

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
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let down = linear(x, &Weight::Trained(self.a.clone()), None, None)?;
        linear(&down, &Weight::Trained(self.b.clone()), None, None)? * self.scale
    }

    fn detach(&self) -> Self {
        Self { a: self.a.detach(), b: self.b.detach(), scale: self.scale }
    }
}

/// The weights of projections that read the same input.
#[derive(Clone)]
pub(crate) enum Joined {
    /// As one.
    Fixed(Weight),
    /// Each with a gradient of its own.
    Trained(Vec<Tensor>),
}

/// `x [N, in]` to `[N, Σ out]`.
#[derive(Clone)]
pub(crate) struct Projection {
    pub(crate) weight: Joined,
    /// Of each part, in order; none where the architecture has none.
    pub(crate) bias: Vec<Tensor>,
    /// Outputs of each part, and its adapter where it has one.
    pub(crate) parts: Vec<(usize, Option<Adapter>)>,
}

impl Projection {
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let weight = match &self.weight {
            Joined::Fixed(weight) => weight.clone(),
            Joined::Trained(parts) => Weight::Trained(joined(parts)?),
        };
        let bias = if self.bias.is_empty() { None } else { Some(joined(&self.bias)?) };
        match (self.change(x)?, residual) {
            (None, residual) => linear(x, &weight, bias.as_ref(), residual),
            (Some(change), None) => linear(x, &weight, bias.as_ref(), Some(&change)),
            (Some(change), Some(residual)) => linear(x, &weight, bias.as_ref(), Some(&(change + residual)?)),
        }
    }

    /// What the adapters add, `[N, Σ out]`.
    fn change(&self, x: &Tensor) -> Result<Option<Tensor>> {
        if self.parts.iter().all(|(_, adapter)| adapter.is_none()) {
            return Ok(None);
        }
        let part = |(out, adapter): &(usize, Option<Adapter>)| match adapter {
            Some(adapter) => adapter.forward(x),
            None => Tensor::zeros((x.dim(0)?, *out), x.dtype(), x.device()),
        };
        let parts: Vec<_> = self.parts.iter().map(part).collect::<Result<_>>()?;
        match &parts[..] {
            [one] => Ok(Some(one.clone())),
            _ => Tensor::cat(&parts, 1).map(Some),
        }
    }

    /// The same numbers, not followed by autograd.
    pub(crate) fn detach(&self) -> Self {
        let detached = |tensors: &[Tensor]| tensors.iter().map(Tensor::detach).collect();
        Self {
            weight: match &self.weight {
                Joined::Fixed(weight) => Joined::Fixed(weight.detach()),
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
