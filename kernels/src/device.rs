//! Where a model computes, and what a device keeps of it: the weight of a norm is a [`Norm`], that of a multiply a
//! [`Weight`].

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::{DType, Result, Tensor};

use crate::cores::Cores;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::linear::Weight;
use crate::panels::Panels;
#[cfg(feature = "cuda")]
use crate::weights::Held;
use crate::weights::{Float, Weights};

/// A kind of device, and how it has weights.
#[derive(Debug, Clone)]
pub enum Device {
    /// The calling rayon pool, which computes in f32 and is to be on these CPUs.
    Cpu(Weights, Cores),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Gpu>, Weights),
}

impl Default for Device {
    fn default() -> Self {
        Self::cpu(Weights::default())
    }
}

/// The weight of a norm, `[width]`.
#[derive(Debug, Clone)]
pub enum Norm {
    /// f32, followed by autograd where it is trained.
    Cpu(Tensor),
    /// f32.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Vector>),
}

impl Device {
    /// All CPUs, which have their weights so.
    pub fn cpu(weights: Weights) -> Self {
        Self::Cpu(weights, Cores::default())
    }

    /// The CPUs that it computes on, or a GPU is fed from.
    pub fn cores(&self) -> Cores {
        match self {
            Self::Cpu(_, cores) => cores.clone(),
            #[cfg(feature = "cuda")]
            Self::Cuda(..) => Cores::default(),
        }
    }

    /// A table of embeddings `[V, d]` for the CPU, in the type that weights are held in; as of these, in bf16 where that
    /// holds every number as it is.
    pub fn table(&self, table: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu(Weights { dtype: Float::F32, .. }, _) => {
                let half = table.to_dtype(DType::BF16)?;
                let off = (half.to_dtype(DType::F32)? - table)?.abs()?.max_all()?.to_scalar::<f32>()?;
                Ok(if off == 0.0 { half } else { table.clone() })
            }
            Self::Cpu(weights, _) => table.to_dtype(weights.dtype.dtype()),
            #[cfg(feature = "cuda")]
            Self::Cuda(..) => bail!("table: a GPU's is a weight"),
        }
    }

    /// The weight of a norm on this device.
    pub fn norm(&self, weight: Tensor) -> Result<Norm> {
        match self {
            Self::Cpu(..) => Ok(Norm::Cpu(weight)),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu, Weights { dtype, .. }) => {
                Ok(Norm::Cuda(Arc::new(cuda::Vector::upload(gpu, &weight, *dtype)?)))
            }
        }
    }

    /// A weight `[out, k]` on this device: of a vocabulary head, or a GPU's table of embeddings.
    pub fn weight(&self, weight: &Tensor) -> Result<Weight> {
        match self {
            Self::Cpu(weights, _) => {
                Ok(Weight::Packed(Arc::new(Panels::pack_rows(&[weight], weights.head())?.narrow())))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu, Weights { dtype, .. }) => {
                Ok(Weight::Cuda(Arc::new(cuda::Linear::upload(gpu, &[weight], None, *dtype)?)))
            }
        }
    }

    /// A layer's weights `[out_i, k]` that are multiplied by as one; a GPU has their biases `[Σ out_i]` with them.
    pub fn projection(&self, parts: &[&Tensor], bias: Option<&Tensor>) -> Result<Weight> {
        match self {
            Self::Cpu(weights, _) => {
                let _ = bias; // the CPU's multiply is told at every call
                Ok(Weight::Packed(Arc::new(Panels::pack_rows(parts, weights.layers())?.narrow())))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu, weights) => {
                let upload = match weights.layers() {
                    Held::Int8 => cuda::Linear::upload_int8,
                    Held::Float(_) | Held::Int16 => cuda::Linear::upload,
                };
                Ok(Weight::Cuda(Arc::new(upload(gpu, parts, bias, weights.dtype)?)))
            }
        }
    }

    /// The weight `[1, k]` of a scalar head, f32 everywhere.
    pub fn scalar(&self, weight: &Tensor) -> Result<Weight> {
        match self {
            Self::Cpu(..) => Ok(Weight::Packed(Arc::new(Panels::pack(weight)?))),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu, _) => {
                let weight = cuda::Linear::upload(gpu, &[weight], None, Float::F32)?;
                Ok(Weight::Cuda(Arc::new(weight)))
            }
        }
    }

    /// Bytes that are free on a GPU.
    pub fn free_bytes(&self) -> Result<Option<usize>> {
        match self {
            Self::Cpu(..) => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu, _) => Ok(Some(gpu.memory()?.0)),
        }
    }

    /// How it has weights.
    pub fn weights(&self) -> Weights {
        match self {
            Self::Cpu(weights, _) => *weights,
            #[cfg(feature = "cuda")]
            Self::Cuda(_, weights) => *weights,
        }
    }

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu(..))
    }

    /// Whether another is the same.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu(..), Self::Cpu(..)) => true,
            #[cfg(feature = "cuda")]
            (Self::Cuda(a, _), Self::Cuda(b, _)) => a.ordinal() == b.ordinal(),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }
}

impl Norm {
    /// The same numbers, not followed by autograd.
    pub fn detach(&self) -> Self {
        match self {
            Self::Cpu(weight) => Self::Cpu(weight.detach()),
            #[cfg(feature = "cuda")]
            Self::Cuda(weight) => Self::Cuda(weight.clone()),
        }
    }
}
