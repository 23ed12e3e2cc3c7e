//! What weights are held in, whatever the device.

use candle_core::DType;

/// An element type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single.
    #[default]
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    BF16,
}

impl Float {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// At the end of a kernel's name.
    #[cfg(feature = "cuda")]
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }
}

/// Which weights have one byte an element, with a scale for each output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Int8 {
    /// None.
    #[default]
    Nothing,
    /// The layers' projections; embedding and head stay as they are.
    Layers,
    /// A vocabulary head too, and the embedding where it is the same matrix. On the CPU alone.
    All,
}

/// How a device has weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weights {
    /// A GPU multiplies in it, too; the CPU multiplies in f32 whatever it holds. Sums are f32 or better.
    pub dtype: Float,
    /// Those that are smaller still.
    pub int8: Int8,
}

/// What one weight is held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Floats.
    Float(Float),
    /// One byte an element, with a scale for each output.
    Int8,
}

impl Default for Held {
    fn default() -> Self {
        Self::Float(Float::F32)
    }
}

impl Weights {
    /// Of the layers' projections.
    pub(crate) fn layers(self) -> Held {
        match self.int8 {
            Int8::Nothing => Held::Float(self.dtype),
            Int8::Layers | Int8::All => Held::Int8,
        }
    }

    /// Of a vocabulary head.
    pub(crate) fn head(self) -> Held {
        match self.int8 {
            Int8::Nothing | Int8::Layers => Held::Float(self.dtype),
            Int8::All => Held::Int8,
        }
    }
}
