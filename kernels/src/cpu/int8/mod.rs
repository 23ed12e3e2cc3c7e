//! The multiply in integers. A weight is 8 bits, times a small whole number for each [`GROUP`] of inputs, times a scale
//! for each output; rows are up to 16 bits with a scale for each row. Sums of [`BLOCK`] products are exact in 32 bits
//! and are added up as floats in a fixed order, so that the bits are the same in any batch, on any thread and on any
//! machine, and all that is lost is lost to the weights' rounding.
//!
//! Why 16 bits for the rows: a few channels of a language model's activations are a hundred times larger than the rest, and
//! 8 bits for all of a row leave nothing for the others. The 16-bit multiply-add (`pmaddwd`) has half the rate of the
//! 8-bit one on machines with VNNI, and nearly the same without, where that one cannot take full-range weights at all.
//! And as weights are widened to 16 bits anyway, their groups' scales cost nothing if they are whole numbers.
#![allow(unsafe_code)]

mod rows;
mod tile;
mod weight;

pub(crate) use rows::Codes;
pub(crate) use weight::Quantized;

use super::isa::{Isa, multiversion};
use super::tile::{MAX_ROWS, Tile, WIDTH};
#[cfg(target_arch = "aarch64")]
use tile::neon::neon;
use tile::portable;
#[cfg(target_arch = "x86_64")]
use tile::x86::{avx2, vnni};

/// Largest code of a weight.
const WEIGHT: f32 = 127.0;
/// Inputs that share a factor.
const GROUP: usize = 16;
/// Largest factor of a group.
const FACTOR: f32 = 32.0;
/// Inputs whose products are summed up as integers.
const BLOCK: usize = 256;

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

#[cfg(test)]
mod tests {
    use super::weight::at;
    use super::*;

    /// Rows with one large number each, and two panels with small groups and a column of zeros.
    fn operands(k: usize) -> (Vec<f32>, Quantized, impl Fn(usize, usize) -> f32) {
        let mut x: Vec<f32> = (0..MAX_ROWS * k).map(|i| ((i * 31 % 97) as f32 - 48.0) / 16.0).collect();
        x.chunks_exact_mut(k).for_each(|row| row[k - 1] = 300.0);
        let weight = |kk: usize, column: usize| match column {
            7 => 0.0,
            _ => ((kk * 17 + column * 5) % 89) as f32 / 40.0 / (1 + kk / GROUP % 5 * 4) as f32 - 0.1,
        };
        let fill = |p: usize, panel: &mut [f32]| {
            let all = panel.iter_mut().enumerate();
            all.for_each(|(i, x)| *x = weight(i / WIDTH, p * WIDTH + i % WIDTH));
        };
        (x, Quantized::build(2, k, fill), weight)
    }

    #[test]
    fn every_path_gives_every_row_count_the_exact_sums() {
        for k in [1, 2, 37, 64, 513, 1200] {
            let (x, weight, _) = operands(k);
            let rows = Codes::of(&x, &weight);
            let (codes, factors) = weight.panel(1);
            let mut lines = Vec::new();
            weight.pairs(0..2, &mut lines);
            let lines = &lines[lines.len() / 2..];
            let exact = |row: usize, j: usize| {
                let term = |kk: usize| {
                    let w = i64::from(codes[at(kk, j)].cast_signed())
                        * i64::from(factors[kk / GROUP * WIDTH + j]);
                    i64::from(rows.values[row * rows.stride + kk]) * w
                };
                let block = |from: usize| (from..(from + BLOCK).min(k)).map(term).sum::<i64>();
                let blocks: Vec<i64> = (0..k).step_by(BLOCK).map(block).collect();
                assert!(blocks.iter().all(|sum| i32::try_from(*sum).is_ok()));
                let sum = blocks[1..].iter().fold(blocks[0] as f32, |sum, block| sum + *block as f32);
                sum * weight.scales(1)[j] * rows.scales[row]
            };
            for isa in Isa::available() {
                for (first, count) in (1..=MAX_ROWS).map(|count| (MAX_ROWS - count, count)) {
                    let mut tile = Tile::new();
                    multiply(isa, &rows, first, count, lines, weight.scales(1), &mut tile);
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

    #[test]
    fn codes_are_within_half_a_step() {
        let (x, weight, original) = operands(77);
        let rows = Codes::of(&x, &weight);
        for (i, x) in x.iter().enumerate() {
            let (row, kk) = (i / 77, i % 77);
            let back = f32::from(rows.values[row * rows.stride + kk]) * rows.scales[row];
            assert!((back - x).abs() <= 0.51 * rows.scales[row], "{x} became {back}");
        }
        let mut back = vec![0.0; 77];
        for column in 0..2 * WIDTH {
            weight.column(column, &mut back);
            let whole: Vec<f32> = (0..77).map(|kk| original(kk, column)).collect();
            let largest = |part: &[f32]| part.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for (group, back) in whole.chunks(GROUP).zip(back.chunks(GROUP)) {
                // A factor is rounded up to a whole one.
                let step = largest(group) / WEIGHT + largest(&whole) / WEIGHT / FACTOR;
                assert!(group.iter().zip(back).all(|(a, b)| (a - b).abs() <= 0.5 * step));
            }
        }
    }

    #[test]
    fn the_longest_sum_fits() {
        for k in [2, 131, 512, 65_536] {
            let weight = Quantized::build(1, k, |_, panel| panel.fill(-1.0));
            let sum = WEIGHT as i64 * FACTOR as i64 * BLOCK.min(k) as i64;
            let worst = sum * i64::from(weight.limit);
            assert!(worst <= i64::from(i32::MAX), "{worst}");
            assert!(
                worst + sum > i64::from(i32::MAX) || weight.limit == i32::from(i16::MAX),
                "bits are left"
            );
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_zeros_stay_zeros() {
        let weight = Quantized::build(1, 2, |_, panel| {
            panel[5] = 1.0;
            panel[3] = f32::NAN;
            panel[4] = f32::INFINITY;
        });
        let scales = weight.scales(0);
        assert!(scales[3].is_nan() && scales[4].is_nan() && scales[5] > 0.0 && scales[6] == 0.0);
        let x = [[0.0, 0.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [1e-42, 0.0], [3e38, -3e38]].concat();
        let rows = Codes::of(&x, &weight);
        assert_eq!(rows.values[..2], [0, 0]);
        assert!(rows.scales[0] == 0.0 && rows.scales[1].is_nan() && rows.scales[2].is_nan());
        assert!(rows.scales[3].is_finite() && rows.values[8..] == [32767, -32767]);
    }
}
