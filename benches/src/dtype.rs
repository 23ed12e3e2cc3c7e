//! `--dtype`: what weights are held in.

use qrm_kernels::{Float, Int8, Weights};

#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    Int8,
    Int8All,
}

impl Dtype {
    pub(crate) fn weights(self) -> Weights {
        let dtype = match self {
            Self::F16 => Float::F16,
            Self::Bf16 => Float::BF16,
            _ => Float::F32,
        };
        let int8 = match self {
            Self::Int8 => Int8::Layers,
            Self::Int8All => Int8::All,
            _ => Int8::Nothing,
        };
        Weights { dtype, int8 }
    }
}
