//! A layer's gates and ups as one weight, with SwiGLU as the last step of their multiply: the two products, the largest of a
//! decoder's activations, are never written.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::cpu::product::gated_product;
use crate::cpu::tile::WIDTH;
use crate::cpu::{f32_slice, values};
use crate::panels::Panels;
use crate::weights::Held;

/// Gates of a panel, which their ups follow: it has what belongs together.
pub(crate) const GATES: usize = WIDTH / 2;

/// Gates and ups `[m, k]`, packed for [`Rows::gated`](crate::Rows::gated).
#[derive(Clone, Debug)]
pub struct Gates(Arc<Panels>);

impl Gates {
    /// Packs `gate` and `up`, `[m, k]` both.
    pub fn pack(gate: &Tensor, up: &Tensor, held: Held) -> Result<Self> {
        let (m, k) = gate.dims2()?;
        if up.dims2()? != (m, k) {
            bail!("gates: {:?} and ups {:?} differ", gate.shape(), up.shape());
        }
        let floats = |w: &Tensor| w.to_dtype(DType::F32)?.contiguous();
        let (gate, up) = (floats(gate)?, floats(up)?);
        let (gate, up) = (values("gates", &gate)?, values("gates", &up)?);
        let blocks = gate.chunks(GATES * k.max(1)).zip(up.chunks(GATES * k.max(1)));
        let rows = blocks.flat_map(|(gate, up)| [gate, up]).flat_map(|block| block.chunks_exact(k.max(1)));
        let panels = Panels::pack_slices(&rows.collect::<Vec<_>>(), k, held);
        Ok(Self(Arc::new(panels.narrow())))
    }

    /// Those whose [`Gates::panels`] these are.
    pub fn from_panels(panels: Arc<Panels>) -> Result<Self> {
        if !panels.out_dim().is_multiple_of(2) {
            bail!("gates: {panels:?} is not half gates and half ups");
        }
        Ok(Self(panels))
    }

    /// The weight `[2m, k]`: [`GATES`] gates, their ups, the next gates and so on.
    pub fn panels(&self) -> &Arc<Panels> {
        &self.0
    }
}

/// `silu(x Gᵀ) · (x Uᵀ)` of `x [N, k]`, `[N, m]`: the bits of [`swiglu`](crate::swiglu()) after a multiply. Has no way back.
pub(crate) fn gated(x: &Tensor, weight: &Gates) -> Result<Tensor> {
    match x.track_op() {
        true => bail!("gated: autograd asks for a way back"),
        false => x.apply_op1(weight.clone()),
    }
}

impl CustomOp1 for Gates {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = layout.shape().dims2()?;
        let weight = &self.0;
        if k != weight.in_dim() {
            bail!("gated: x {:?} does not fit {weight:?}", layout.shape());
        }
        let y = gated_product(f32_slice("gated", x, layout)?, n, weight);
        Ok((CpuStorage::F32(y), Shape::from((n, weight.out_dim() / 2))))
    }
}
