//! `y = x Wᵀ (+ bias) (+ residual)`, and its way back.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu::product::{product, weight_gradient};
use crate::cpu::{f32_slice, gradient, values};
use crate::panels::Panels;

/// A weight `[out, k]` to multiply by; f32 on the CPU.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Packed once and fixed from then on.
    Packed(Arc<Panels>),
    /// A tensor that autograd follows; packed at every use, which costs one pass over it.
    Trained(Tensor),
    /// On a GPU, with its bias.
    #[cfg(feature = "cuda")]
    Cuda(Arc<crate::cuda::Linear>),
}

impl Weight {
    /// As the multiply reads it.
    pub fn panels(&self) -> Result<Arc<Panels>> {
        match self {
            Self::Packed(panels) => Ok(panels.clone()),
            Self::Trained(weight) => Ok(Arc::new(Panels::pack(weight)?)),
            #[cfg(feature = "cuda")]
            Self::Cuda(weight) => bail!("linear: {weight:?} is on a GPU"),
        }
    }

    /// Where it is packed already.
    pub fn packed(&self) -> Option<&Arc<Panels>> {
        match self {
            Self::Packed(panels) => Some(panels),
            _ => None,
        }
    }

    /// The same numbers, not followed by autograd.
    pub fn detach(&self) -> Self {
        match self {
            Self::Packed(panels) => Self::Packed(panels.clone()),
            Self::Trained(weight) => Self::Trained(weight.detach()),
            #[cfg(feature = "cuda")]
            Self::Cuda(weight) => Self::Cuda(weight.clone()),
        }
    }
}

/// `x [N, k]` times `weight [out, k]` transposed, plus `bias [out]`, plus `residual [N, out]`; f32, `[N, out]`.
/// Gradients for `x` and `residual`, and for weight and `bias` where the weight is [`Weight::Trained`].
pub fn linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    match weight {
        Weight::Packed(weight) => {
            let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
            if bias.as_ref().is_some_and(|b| b.len() != weight.out_dim()) {
                bail!("linear: bias of {:?} for {weight:?}", bias.map(|b| b.len()));
            }
            let op = Packed { weight: weight.clone(), bias };
            match residual {
                None => x.apply_op1(op),
                Some(residual) => x.apply_op2(residual, op),
            }
        }
        Weight::Trained(weight) => {
            let y = match residual {
                None => x.apply_op2(weight, Trained)?,
                Some(residual) => x.apply_op3(weight, residual, Trained)?,
            };
            match bias {
                None => Ok(y),
                Some(bias) => y.broadcast_add(bias),
            }
        }
        #[cfg(feature = "cuda")]
        Weight::Cuda(weight) => bail!("linear: x is on the CPU, {weight:?} on a GPU"),
    }
}

struct Packed {
    weight: Arc<Panels>,
    bias: Option<Vec<f32>>,
}

impl Packed {
    fn forward(&self, x: &[f32], shape: &Shape, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (n, k) = shape.dims2()?;
        let out = self.weight.out_dim();
        if k != self.weight.in_dim() || residual.is_some_and(|r| r.len() != n * out) {
            bail!("linear: x {shape:?} does not fit {:?}", self.weight);
        }
        let y = product(x, n, &self.weight, self.bias.as_deref(), residual);
        Ok((CpuStorage::F32(y), Shape::from((n, out))))
    }

    fn backward(&self, x: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let g = values("linear", &g)?;
        gradient(product(&g, x.dim(0)?, &self.weight.transposed(), None, None), x.shape())
    }
}

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(f32_slice("linear", x, layout)?, layout.shape(), None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.backward(x, g)
    }
}

impl CustomOp2 for Packed {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = f32_slice("linear", residual, residual_layout)?;
        self.forward(f32_slice("linear", x, layout)?, layout.shape(), Some(residual))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.backward(x, g)?, Some(g.clone())))
    }
}

struct Trained;

impl Trained {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, k), (out, width)) = (x_layout.shape().dims2()?, weight_layout.shape().dims2()?);
        if k != width || residual.is_some_and(|r| r.len() != n * out) {
            bail!("linear: x {:?} does not fit a weight of {:?}", x_layout.shape(), weight_layout.shape());
        }
        let weight = Panels::pack_slice(f32_slice("linear", weight, weight_layout)?, k);
        let y = product(f32_slice("linear", x, x_layout)?, n, &weight, None, residual);
        Ok((CpuStorage::F32(y), Shape::from((n, out))))
    }

    /// Gradients of `x` and of the weight.
    fn backward(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, k), (out, _)) = (x.dims2()?, w.dims2()?);
        let g = g.contiguous()?;
        let g = values("linear", &g)?;
        let dx = match x.track_op() {
            true => {
                let weight = Panels::pack_transposed(&values("linear", w)?, k);
                gradient(product(&g, n, &weight, None, None), x.shape())?
            }
            false => None,
        };
        let dw = weight_gradient(&g, out, &values("linear", x)?, k, None);
        Ok((dx, gradient(dw, w.shape())?))
    }
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, g)
    }
}

impl CustomOp3 for Trained {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = f32_slice("linear", residual, residual_layout)?;
        self.forward((x, x_layout), (weight, weight_layout), Some(residual))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, g)?;
        Ok((dx, dw, Some(g.clone())))
    }
}
