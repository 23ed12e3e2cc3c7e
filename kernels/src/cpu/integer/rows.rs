//! Rows in codes, each with a scale of its own.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::Integers;
use crate::cpu::isa::multiversion;
use crate::cpu::{math, output};

/// Rows in codes.
pub(crate) struct Codes {
    /// `[n, stride]`: pairs of neighbours, the last padded with zero.
    pub(super) values: Vec<i16>,
    pub(super) stride: usize,
    /// What a code is worth, `[n]`; NaN where a row holds what is not finite.
    pub(super) scales: Vec<f32>,
}

impl Codes {
    /// Of rows `x [n, k]` that `weight` is multiplied by.
    pub(crate) fn of(x: &[f32], weight: Integers<'_>) -> Self {
        let k = weight.k();
        let n = x.len() / k.max(1);
        let stride = k.div_ceil(2) * 2;
        let mut scales = vec![0.0f32; n];
        let limit = weight.limit() as f32;
        let fill = |values: output::Output<i16>| {
            let rows = scales.par_iter_mut().zip(x.par_chunks(k.max(1))).enumerate();
            rows.with_min_len(8).for_each(|(i, (scale, row))| {
                // SAFETY: each row is one task's.
                let codes = unsafe { values.slice(i * stride, stride) };
                *scale = quantize(row, limit, codes);
            });
        };
        // SAFETY: all rows are written, with their padding.
        let values = unsafe { output::build(n * stride, fill) };
        Self { values, stride, scales }
    }
}

multiversion! {
    /// Codes of a row; what a code is worth.
    fn quantize(row: &[f32], limit: f32, codes: &mut [i16]) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer held in the low mantissa bits
        let mut largest = [0.0f32; math::LANES];
        let mut zeros = [0.0f32; math::LANES];
        let mut see = |chunk: &[f32]| {
            for ((largest, zero), x) in largest.iter_mut().zip(&mut zeros).zip(chunk) {
                let x = x.abs();
                *largest = if x > *largest { x } else { *largest };
                *zero += x * 0.0; // NaN as soon as something is not finite
            }
        };
        let mut chunks = row.chunks_exact(math::LANES);
        chunks.by_ref().for_each(&mut see);
        see(chunks.remainder());
        let largest = math::tree(largest, |a, b| if b > a { b } else { a });
        let (scale, inverse) = (largest / limit, limit / largest);
        if math::tree(zeros, |a, b| a + b).is_nan() {
            codes.fill(0);
            return f32::NAN;
        }
        if !inverse.is_finite() {
            codes.fill(0);
            return scale; // of zeros, or nearly
        }
        let (codes, padding) = codes.split_at_mut(row.len());
        padding.fill(0);
        for (code, x) in codes.iter_mut().zip(row) {
            *code = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i16;
        }
        scale
    }
}
