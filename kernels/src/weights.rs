//! What weights are held in, whatever the device.

use std::fmt;
use std::str::FromStr;

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
    /// The layers' projections. A vocabulary head, and the embedding where it is the same matrix, has two bytes on the CPU and
    /// stays as it is on a GPU.
    Layers,
    /// That head too. On the CPU alone.
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
    /// Two bytes an element, with a scale for each output, multiplied in integers. On the CPU alone.
    Int16,
}

impl Default for Held {
    fn default() -> Self {
        Self::Float(Float::F32)
    }
}

impl FromStr for Weights {
    type Err = String;

    /// Of the CPU: `f32`, `f16`, `bf16`, `int8` (the layers), `int8-all`.
    fn from_str(name: &str) -> Result<Self, String> {
        let float = |dtype| Ok(Self { dtype, int8: Int8::Nothing });
        match name {
            "f32" => float(Float::F32),
            "f16" => float(Float::F16),
            "bf16" => float(Float::BF16),
            "int8" => Ok(Self { dtype: Float::F32, int8: Int8::Layers }),
            "int8-all" => Ok(Self { dtype: Float::F32, int8: Int8::All }),
            _ => Err(format!("{name:?} is none of f32, f16, bf16, int8, int8-all")),
        }
    }
}

impl fmt::Display for Weights {
    /// What [`Weights::from_str`] takes; of int8 on a GPU, what the rest is held in too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let float = match self.dtype {
            Float::F32 => "f32",
            Float::F16 => "f16",
            Float::BF16 => "bf16",
        };
        match (self.int8, self.dtype) {
            (Int8::Nothing, _) => f.write_str(float),
            (Int8::Layers, Float::F32) => f.write_str("int8"),
            (Int8::All, Float::F32) => f.write_str("int8-all"),
            (Int8::Layers, _) => write!(f, "int8 and {float}"),
            (Int8::All, _) => write!(f, "int8-all and {float}"),
        }
    }
}

impl Weights {
    /// The same on a GPU, which widens int8 to bf16 before it multiplies.
    pub fn on_gpu(self) -> Self {
        match self.int8 {
            Int8::Nothing => self,
            Int8::Layers | Int8::All => Self { dtype: Float::BF16, ..self },
        }
    }

    /// Of the layers' projections.
    pub fn layers(self) -> Held {
        match self.int8 {
            Int8::Nothing => Held::Float(self.dtype),
            Int8::Layers | Int8::All => Held::Int8,
        }
    }

    /// Of a vocabulary head on the CPU.
    pub fn head(self) -> Held {
        match self.int8 {
            Int8::Nothing => Held::Float(self.dtype),
            Int8::Layers => Held::Int16,
            Int8::All => Held::Int8,
        }
    }
}
