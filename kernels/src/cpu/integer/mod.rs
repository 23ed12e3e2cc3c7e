//! The multiply in integers: rows in codes of up to 16 bits with a scale for each row, weights in codes of up to 16 bits
//! with a scale for each output. Sums of [`BLOCK`] products are exact in 32 bits and are added up as floats in a fixed
//! order, so that the bits are the same in any batch, on any thread and on any machine, and all that is lost is lost to
//! rounding the operands.
//!
//! - [`int8`]: weights of a byte, times a small whole number for each few inputs; widened where they are used.
//! - [`int16`]: weights as they are multiplied by, of about 14 bits: what a head's logits ask for.
//! - [`rows`]: the other operand. `tile/`: the inner tile.
//!
//! Why 16 bits for the rows: a few channels of a language model's activations are a hundred times larger than the rest, and
//! 8 bits for all of a row leave nothing for the others. The 16-bit multiply-add (`pmaddwd`) has half the rate of the
//! 8-bit one on machines with VNNI, and nearly the same without, where that one cannot take full-range weights at all.
#![allow(unsafe_code)]

pub(crate) mod int16;
pub(crate) mod int8;
mod rows;
mod tile;

pub(crate) use int8::Int8Panels;
pub(crate) use int16::Int16Panels;
pub(crate) use rows::Codes;

use super::isa::{Isa, multiversion};
use super::tile::{MAX_ROWS, Tile, WIDTH};
#[cfg(target_arch = "aarch64")]
use tile::neon::neon;
use tile::portable;
#[cfg(target_arch = "x86_64")]
use tile::x86::{avx2, vnni};

/// Inputs whose products are summed up as integers.
const BLOCK: usize = 256;

/// A weight that is multiplied by in integers.
#[derive(Clone, Copy)]
pub(crate) enum Integers<'a> {
    Int8(&'a Int8Panels),
    Int16(&'a Int16Panels),
}

impl Integers<'_> {
    /// Input width.
    fn k(self) -> usize {
        match self {
            Self::Int8(weight) => weight.k,
            Self::Int16(weight) => weight.k,
        }
    }

    /// The largest code a row may have for the sums to fit 32 bits.
    fn limit(self) -> i32 {
        match self {
            Self::Int8(weight) => weight.limit,
            Self::Int16(_) => int16::LIMIT,
        }
    }

    /// What a panel's columns are scaled by.
    pub(crate) fn scales(&self, panel: usize) -> &[f32] {
        match self {
            Self::Int8(weight) => weight.scales(panel),
            Self::Int16(weight) => weight.scales(panel),
        }
    }
}

/// Thirty-two codes on a cache line of their own: sixteen columns of a pair of rows.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CodeLine([i16; 32]);

/// `out[i, j] = rows[first + i] · panel[:, j]` for `count` ≤ [`MAX_ROWS`] rows.
pub(crate) fn multiply(
    isa: Isa,
    rows: &Codes,
    first: usize,
    count: usize,
    panel: &[CodeLine],
    scales: &[f32],
    out: &mut Tile,
) {
    let (pairs, stride) = (rows.stride / 2, rows.stride);
    let a = &rows.values[first * stride..];
    assert!(count <= MAX_ROWS && panel.len() >= 2 * pairs && a.len() >= count * stride);
    let mut sums = [0i32; MAX_ROWS * WIDTH];
    let out = &mut out.0[..count * WIDTH];
    for (b, from) in (0..pairs).step_by(BLOCK / 2).enumerate() {
        let pairs = (BLOCK / 2).min(pairs - from);
        let (a, panel) = (a[2 * from..].as_ptr(), panel[2 * from..].as_ptr().cast::<i16>());
        macro_rules! dispatch {
            ($kernel:ident: $($n:literal)*) => {
                match count {
                    // SAFETY: the assertion above bounds every access; `isa` was detected on this machine.
                    $($n => unsafe { $kernel::<$n>(a, stride, pairs, panel, sums.as_mut_ptr()) },)*
                    _ => {}
                }
            };
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if Isa::has_vnni() => dispatch!(vnni: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => dispatch!(avx2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => dispatch!(neon: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            Isa::Portable => dispatch!(portable: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        }
        add(&sums[..out.len()], b == 0, out);
    }
    scale(out, &rows.scales[first..], scales);
}

multiversion! {
    /// A block's sums to those of the blocks before it.
    fn add(sums: &[i32], is_first: bool, out: &mut [f32]) {
        for (y, sum) in out.iter_mut().zip(sums) {
            let before = if is_first { 0.0 } else { *y };
            *y = before + *sum as f32;
        }
    }
}

multiversion! {
    fn scale(out: &mut [f32], rows: &[f32], columns: &[f32]) {
        for (out, row) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(rows) {
            for (y, column) in out.iter_mut().zip(columns) {
                *y = *y * column * row;
            }
        }
    }
}

/// Where a panel has its element `[kk, j]`.
fn at(kk: usize, j: usize) -> usize {
    (kk / 2 * WIDTH + j) * 2 + kk % 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with one large number each.
    fn rows(k: usize) -> Vec<f32> {
        let mut x: Vec<f32> = (0..MAX_ROWS * k).map(|i| ((i * 31 % 97) as f32 - 48.0) / 16.0).collect();
        x.chunks_exact_mut(k).for_each(|row| row[k - 1] = 300.0);
        x
    }

    /// A weight with inputs of all sizes and a column of zeros.
    pub(super) fn weight(kk: usize, column: usize) -> f32 {
        match column {
            7 => 0.0,
            _ => ((kk * 17 + column * 5) % 89) as f32 / 40.0 / (1 + kk / 16 % 5 * 4) as f32 - 0.1,
        }
    }

    /// Fills panels with it.
    pub(super) fn fill(p: usize, panel: &mut [f32]) {
        let all = panel.iter_mut().enumerate();
        all.for_each(|(i, x)| *x = weight(i / WIDTH, p * WIDTH + i % WIDTH));
    }

    #[test]
    fn every_path_gives_every_row_count_the_exact_sums() {
        for k in [1, 2, 37, 64, 513, 1200] {
            let x = rows(k);
            let (int8, int16) = (Int8Panels::build(2, k, fill), Int16Panels::build(2, k, fill));
            let mut widened = Vec::new();
            int8.pairs(1..2, &mut widened);
            for (weight, lines) in
                [(Integers::Int8(&int8), &widened[..]), (Integers::Int16(&int16), int16.panel(1))]
            {
                let rows = Codes::of(&x, weight);
                let scales = weight.scales(1);
                let exact = |row: usize, j: usize| {
                    let code = |kk| i64::from(lines[at(kk, j) / 32].0[at(kk, j) % 32]);
                    let term = |kk: usize| i64::from(rows.values[row * rows.stride + kk]) * code(kk);
                    let block = |from: usize| (from..(from + BLOCK).min(k)).map(term).sum::<i64>();
                    let blocks: Vec<i64> = (0..k).step_by(BLOCK).map(block).collect();
                    assert!(blocks.iter().all(|sum| i32::try_from(*sum).is_ok()));
                    let sum = blocks[1..].iter().fold(blocks[0] as f32, |sum, block| sum + *block as f32);
                    sum * scales[j] * rows.scales[row]
                };
                for isa in Isa::available() {
                    for (first, count) in (1..=MAX_ROWS).map(|count| (MAX_ROWS - count, count)) {
                        let mut tile = Tile::new();
                        multiply(isa, &rows, first, count, lines, scales, &mut tile);
                        for i in 0..count {
                            for j in 0..WIDTH {
                                let want = exact(first + i, j);
                                assert_eq!(tile.row(i)[j], want, "{isa:?}, k {k}, {count} rows, [{i}, {j}]");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_within_half_a_step() {
        let x = rows(77);
        let weight = Int8Panels::build(2, 77, fill);
        let rows = Codes::of(&x, Integers::Int8(&weight));
        for (i, x) in x.iter().enumerate() {
            let (row, kk) = (i / 77, i % 77);
            let back = f32::from(rows.values[row * rows.stride + kk]) * rows.scales[row];
            assert!((back - x).abs() <= 0.51 * rows.scales[row], "{x} became {back}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_zeros_stay_zeros() {
        let fill = |_, panel: &mut [f32]| {
            panel[5] = 1.0;
            panel[3] = f32::NAN;
            panel[4] = f32::INFINITY;
        };
        let (int8, int16) = (Int8Panels::build(1, 2, fill), Int16Panels::build(1, 2, fill));
        let x = [[0.0, 0.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [1e-42, 0.0], [3e38, -3e38]].concat();
        for weight in [Integers::Int8(&int8), Integers::Int16(&int16)] {
            let scales = weight.scales(0);
            assert!(scales[3].is_nan() && scales[4].is_nan() && scales[5] > 0.0 && scales[6] == 0.0);
            let rows = Codes::of(&x, weight);
            assert_eq!(rows.values[..2], [0, 0]);
            assert!(rows.scales[0] == 0.0 && rows.scales[1].is_nan() && rows.scales[2].is_nan());
            let limit = weight.limit() as i16;
            assert!(rows.scales[3].is_finite() && rows.values[8..] == [limit, -limit]);
        }
    }
}
