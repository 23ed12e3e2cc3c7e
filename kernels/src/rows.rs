//! The ops of a model, whatever the device. Every op has a face for each kind of device; here they meet, so that a model is
//! written once.
//!
//! Activations are [`Rows`], what a batch tells the ops is a [`Layout`]. All of one op's operands lie on the same device.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::{Result, Tensor};

use crate::attention::{Segment, forest_attention};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::device::{Device, Norm};
use crate::gates::{Gates, gated};
use crate::linear::{Weight, linear};
use crate::rms_norm::rms_norm;
use crate::rope::{QkNorm, RopeTable, qk_rope};
use crate::swiglu::swiglu;
use crate::token_reward::{TokenReward, token_reward};
#[cfg(feature = "cuda")]
use crate::weights::Float;

/// Activations `[N, width]`.
#[derive(Debug)]
pub enum Rows {
    /// f32, contiguous.
    Cpu(Tensor),
    /// f32 between layers, else the type of the weights.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Matrix),
}

/// What the ops must know of a batch: where its tokens stand, and which of them see which.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Of each row, in its trajectory.
    pub positions: Arc<[u32]>,
    /// Runs of rows, parents first.
    pub segments: Arc<[Segment]>,
    /// The angles of all positions.
    pub rope: Arc<RopeTable>,
    /// Rows whose hidden states the head reads.
    pub read: Arc<[u32]>,
    /// The same on the device.
    #[cfg(feature = "cuda")]
    pub cuda: Option<OnGpu>,
}

/// A batch on a GPU: what its kernels read of it, and the angles of its positions.
#[cfg(feature = "cuda")]
pub type OnGpu = Arc<(cuda::Plan, Arc<cuda::Rotation>)>;

/// Different devices in one op: a mistake of whoever loaded the model.
#[cfg(feature = "cuda")]
fn apart<T>(op: &str) -> Result<T> {
    bail!("{op}: operands on different devices")
}

impl From<Tensor> for Rows {
    fn from(tensor: Tensor) -> Self {
        Self::Cpu(tensor)
    }
}

impl Rows {
    /// The tensor of rows that are on the CPU.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => bail!("{matrix:?} is on a GPU: this is computed on the CPU alone"),
        }
    }

    /// As a tensor on the CPU, f32; of a GPU's rows a copy.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => matrix.download(),
        }
    }

    /// The same rows on another device.
    pub fn to(self, device: &Device) -> Result<Self> {
        match (self, device) {
            (Self::Cpu(tensor), Device::Cpu(..)) => Ok(Self::Cpu(tensor)),
            #[cfg(feature = "cuda")]
            (Self::Cpu(tensor), Device::Cuda(gpu, _)) => {
                Ok(Self::Cuda(cuda::Matrix::upload(gpu, &tensor, Float::F32)?))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(matrix), Device::Cpu(..)) => Ok(Self::Cpu(matrix.download()?)),
            #[cfg(feature = "cuda")]
            (Self::Cuda(matrix), Device::Cuda(gpu, _)) => match matrix.gpu().ordinal() == gpu.ordinal() {
                true => Ok(Self::Cuda(matrix)),
                false => Ok(Self::Cuda(matrix.to(gpu)?)),
            },
        }
    }

    /// Copies of the rows that the batch reads, f32.
    pub fn read(&self, layout: &Layout) -> Result<Self> {
        match self {
            Self::Cpu(x) => {
                let rows = Tensor::from_slice(&layout.read, layout.read.len(), x.device())?;
                x.index_select(&rows, 0).map(Self::Cpu)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(x) => cuda::embed(x, &layout.on_device()?.0.read()).map(Self::Cuda),
        }
    }

    /// RMSNorm of every row times `weight`.
    pub fn rms_norm(&self, weight: &Norm, eps: f32) -> Result<Self> {
        match (self, weight) {
            (Self::Cpu(x), Norm::Cpu(weight)) => rms_norm(x, weight, eps).map(Self::Cpu),
            #[cfg(feature = "cuda")]
            (Self::Cuda(x), Norm::Cuda(weight)) => cuda::rms_norm(x, None, weight, eps).map(Self::Cuda),
            #[cfg(feature = "cuda")]
            _ => apart("rms_norm"),
        }
    }

    /// The same of the rows that the batch reads.
    pub fn rms_norm_read(&self, layout: &Layout, weight: &Norm, eps: f32) -> Result<Self> {
        match (self, weight) {
            (Self::Cpu(_), Norm::Cpu(weight)) => {
                rms_norm(self.read(layout)?.tensor()?, weight, eps).map(Self::Cpu)
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(x), Norm::Cuda(weight)) => {
                let plan = &layout.on_device()?.0;
                cuda::rms_norm(x, Some(&plan.read()), weight, eps).map(Self::Cuda)
            }
            #[cfg(feature = "cuda")]
            _ => apart("rms_norm"),
        }
    }

    /// `x Wᵀ`, plus `bias` (which a GPU's weight has with it), plus `residual`.
    pub fn linear(&self, weight: &Weight, bias: Option<&Tensor>, residual: Option<&Self>) -> Result<Self> {
        match (self, weight, residual) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(x), Weight::Cuda(weight), None) => cuda::linear(x, weight, None).map(Self::Cuda),
            #[cfg(feature = "cuda")]
            (Self::Cuda(x), Weight::Cuda(weight), Some(Self::Cuda(residual))) => {
                cuda::linear(x, weight, Some(residual)).map(Self::Cuda)
            }
            (Self::Cpu(x), weight, None) => linear(x, weight, bias, None).map(Self::Cpu),
            (Self::Cpu(x), weight, Some(Self::Cpu(residual))) => {
                linear(x, weight, bias, Some(residual)).map(Self::Cpu)
            }
            #[cfg(feature = "cuda")]
            _ => apart("linear"),
        }
    }

    /// Rotates queries and keys by their positions, after the heads' norms where there are some.
    pub fn qk_rope(
        self,
        layout: &Layout,
        (q_heads, kv_heads): (usize, usize),
        norm: Option<&QkNorm>,
    ) -> Result<Self> {
        match self {
            Self::Cpu(qkv) => {
                qk_rope(qkv, &layout.positions, &layout.rope, q_heads, kv_heads, norm).map(Self::Cpu)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(qkv) => {
                let (plan, rotation) = layout.on_device()?.as_ref();
                let norms = match norm {
                    None => None,
                    Some(QkNorm { q: Norm::Cuda(q), k: Norm::Cuda(k), eps }) => Some((&**q, &**k, *eps)),
                    Some(_) => return apart("qk_rope"),
                };
                cuda::qk_rope(qkv, &plan.positions(), rotation, (q_heads, kv_heads), norms).map(Self::Cuda)
            }
        }
    }

    /// Causal attention over the batch's segments, none of them kept from before.
    pub fn forest_attention(
        &self,
        layout: &Layout,
        (q_heads, kv_heads): (usize, usize),
        window: Option<usize>,
    ) -> Result<Self> {
        match self {
            Self::Cpu(qkv) => {
                forest_attention(qkv, &layout.segments, q_heads, kv_heads, window).map(Self::Cpu)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(qkv) => {
                let plan = &layout.on_device()?.0;
                cuda::forest_attention(qkv, plan, None, q_heads, kv_heads, window).map(Self::Cuda)
            }
        }
    }

    /// The same where some segments are kept in `pool`, which then has the blocks that the batch leaves too.
    #[cfg(feature = "cuda")]
    pub fn pool_attention(
        &self,
        layout: &Layout,
        pool: &mut cuda::Pool,
        (q_heads, kv_heads): (usize, usize),
        window: Option<usize>,
    ) -> Result<Self> {
        let Self::Cuda(qkv) = self else { return apart("attention") };
        let plan = &layout.on_device()?.0;
        cuda::keep(qkv, plan, (q_heads, kv_heads), pool)?;
        cuda::forest_attention(qkv, plan, Some(pool), q_heads, kv_heads, window).map(Self::Cuda)
    }

    /// `silu(gate) · up` of rows that are gates, then ups.
    pub fn swiglu(&self) -> Result<Self> {
        match self {
            Self::Cpu(x) => swiglu(x).map(Self::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(x) => cuda::swiglu(x).map(Self::Cuda),
        }
    }

    /// [`Rows::swiglu`] of [`Rows::linear`] in one. On the CPU alone; has no way back.
    pub fn gated(&self, weight: &Gates) -> Result<Self> {
        gated(self.tensor()?, weight).map(Self::Cpu)
    }

    /// A scalar head's numbers, `[N]`: rows times `weight [1, k]`, plus `bias [1]`.
    pub fn scalar(&self, weight: &Weight, bias: Option<&Tensor>) -> Result<Vec<f32>> {
        match (self, weight) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(hidden), Weight::Cuda(weight)) => {
                let bias = bias.map_or(Ok(0.0), |bias| bias.get(0)?.to_scalar())?;
                cuda::row_dot(hidden, weight, bias)
            }
            (Self::Cpu(hidden), weight) => linear(hidden, weight, bias, None)?.flatten_all()?.to_vec1(),
            #[cfg(feature = "cuda")]
            _ => apart("scalar head"),
        }
    }

    /// The fused reward op over a vocabulary head.
    pub fn token_reward(&self, weight: &Weight, targets: &[u32]) -> Result<TokenReward> {
        match (self, weight) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(hidden), Weight::Cuda(weight)) => weight.token_reward(hidden, targets),
            (Self::Cpu(hidden), weight) => token_reward(hidden, &*weight.panels()?, targets),
            #[cfg(feature = "cuda")]
            _ => apart("token_reward"),
        }
    }
}

impl Layout {
    /// Of a batch on the CPU.
    pub fn new(
        positions: Arc<[u32]>,
        segments: Arc<[Segment]>,
        rope: Arc<RopeTable>,
        read: Arc<[u32]>,
    ) -> Self {
        Self {
            positions,
            segments,
            rope,
            read,
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// The batch's embeddings out of a table on its GPU.
    #[cfg(feature = "cuda")]
    pub fn embed(&self, table: &cuda::Linear) -> Result<Rows> {
        cuda::embed(table.weight()?, &self.on_device()?.0.ids()).map(Rows::Cuda)
    }

    #[cfg(feature = "cuda")]
    fn on_device(&self) -> Result<&OnGpu> {
        match &self.cuda {
            Some(cuda) => Ok(cuda),
            None => bail!("the batch was not laid out for a GPU"),
        }
    }
}
