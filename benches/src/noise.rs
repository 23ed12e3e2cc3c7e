//! Reproducible inputs.

use candle_core::{Device, Result, Tensor};

/// `n` values in ±`scale`.
pub(crate) fn values(n: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// A `[rows, columns]` matrix of [`values`].
pub(crate) fn matrix(rows: usize, columns: usize, scale: f32) -> Result<Tensor> {
    Tensor::from_vec(values(rows * columns, scale), (rows, columns), &Device::Cpu)
}
