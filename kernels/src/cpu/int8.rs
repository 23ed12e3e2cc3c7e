//! The multiply in integers. Weights are 8 bits with a scale for each output, rows up to 16 bits with a scale for each
//! row: as many as a sum of k products in 32 bits carries. The sum is exact, so that its bits are the same in any
//! batch, on any thread and on any machine, and all that is lost is lost to the weights' rounding.
//!
//! Why 16 bits for the rows: a few channels of a language model's activations are a hundred times larger than the rest, and
//! 8 bits for all of a row leave nothing for the others. The 16-bit multiply-add (`pmaddwd`) has half the rate of the
//! 8-bit one on machines with VNNI, and nearly the same without, where that one cannot take full-range weights at all.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::math;
use super::tile::{MAX_ROWS, Tile, WIDTH};

/// Largest code of a weight.
const WEIGHT: f32 = 127.0;

/// Thirty-two codes on a cache line of their own: sixteen columns of a pair of rows.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CodeLine([i16; 32]);

/// Rows in codes.
pub(crate) struct Codes {
    /// `[n, stride]`: pairs of neighbours, the last padded with zero.
    values: Vec<i16>,
    stride: usize,
    /// What a code is worth, `[n]`; NaN where a row holds what is not finite.
    scales: Vec<f32>,
}

/// Bytes of a panel of codes.
pub(crate) fn bytes(k: usize) -> usize {
    k.div_ceil(2) * 2 * WIDTH
}

/// Where a panel has its element `[kk, j]`.
pub(crate) fn at(kk: usize, j: usize) -> usize {
    (kk / 2 * WIDTH + j) * 2 + kk % 2
}

/// One panel `[k, WIDTH]` as codes `[⌈k/2⌉, WIDTH, 2]` and their `scales [WIDTH]`; NaN of a column that is not finite.
pub(crate) fn encode(panel: &[f32], codes: &mut [i8], scales: &mut [f32]) {
    for (j, scale) in scales.iter_mut().enumerate() {
        let column = || panel[j..].iter().step_by(WIDTH);
        let max = column().fold(0.0f32, |max, x| max.max(x.abs()));
        *scale = if column().all(|x| x.is_finite()) { max / WEIGHT } else { f32::NAN };
        for (kk, x) in column().enumerate() {
            let code = if *scale > 0.0 { (x / *scale).round().clamp(-WEIGHT, WEIGHT) } else { 0.0 };
            codes[at(kk, j)] = code as i8;
        }
    }
}

/// The way back, to `panel [k, WIDTH]`.
pub(crate) fn decode(codes: &[i8], scales: &[f32], panel: &mut [f32]) {
    for (kk, row) in panel.chunks_exact_mut(WIDTH).enumerate() {
        for (j, (x, scale)) in row.iter_mut().zip(scales).enumerate() {
            *x = f32::from(codes[at(kk, j)]) * scale;
        }
    }
}

/// Codes as the multiply takes them.
pub(crate) fn widen(codes: &[i8], to: &mut Vec<CodeLine>) {
    multiversion! {
        fn widen(codes: &[i8], to: &mut [CodeLine]) {
            for (line, codes) in to.iter_mut().zip(codes.chunks_exact(32)) {
                for (to, code) in line.0.iter_mut().zip(codes) {
                    *to = i16::from(*code);
                }
            }
        }
    }
    to.resize(codes.len() / 32, CodeLine([0; 32]));
    widen(codes, to);
}

impl Codes {
    /// Of rows `x [n, k]`.
    pub(crate) fn of(x: &[f32], k: usize) -> Self {
        let n = x.len() / k.max(1);
        let stride = k.div_ceil(2) * 2;
        // k · 127 · limit fits 31 bits.
        let limit = (i32::MAX as usize / (127 * k.max(1))).min(i16::MAX as usize) as f32;
        let mut values = vec![0i16; n * stride];
        let mut scales = vec![0.0f32; n];
        let rows = values.par_chunks_mut(stride.max(1)).zip(&mut scales).zip(x.par_chunks(k.max(1)));
        rows.with_min_len(8).for_each(|((codes, scale), row)| *scale = quantize(row, limit, codes));
        Self { values, stride, scales }
    }
}

multiversion! {
    /// Codes of a row; what a code is worth.
    fn quantize(row: &[f32], limit: f32, codes: &mut [i16]) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer held in the low mantissa bits
        let mut lanes = [0.0f32; math::LANES];
        let mut sums = [0.0f32; math::LANES];
        for chunk in row.chunks(math::LANES) {
            for ((max, sum), x) in lanes.iter_mut().zip(&mut sums).zip(chunk) {
                let x = x.abs();
                *max = if x > *max { x } else { *max };
                *sum += x * 0.0; // NaN as soon as something is not finite
            }
        }
        let max = math::tree(lanes, |a, b| if b > a { b } else { a });
        if math::tree(sums, |a, b| a + b).is_nan() {
            return f32::NAN;
        }
        let (scale, inverse) = (max / limit, limit / max);
        if !inverse.is_finite() {
            return scale; // zeros, or nearly: their codes are zeros
        }
        for (code, x) in codes.iter_mut().zip(row) {
            *code = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i16;
        }
        scale
    }
}

/// `out[i, j] = rows[first + i] · panel[:, j]` for `count` ≤ [`MAX_ROWS`] rows, in the units that the scales say.
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
    let panel = panel.as_ptr().cast::<i16>();
    let mut sums = [0i32; MAX_ROWS * WIDTH];
    macro_rules! dispatch {
        ($kernel:ident: $($n:literal)*) => {
            match count {
                // SAFETY: the assertions above bound every access; `isa` was detected on this machine.
                $($n => unsafe { $kernel::<$n>(a.as_ptr(), stride, pairs, panel, sums.as_mut_ptr()) },)*
                _ => {}
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::has_vnni() => dispatch!(vnni: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => dispatch!(avx2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        Isa::Portable => dispatch!(portable: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
    let rows = out.0.chunks_exact_mut(WIDTH).zip(sums.chunks_exact(WIDTH)).zip(&rows.scales[first..]);
    for ((out, sums), row) in rows.take(count) {
        for ((y, sum), column) in out.iter_mut().zip(sums).zip(scales) {
            *y = *sum as f32 * column * row;
        }
    }
}

/// # Safety
/// `a` holds `M` rows of `2 · pairs` codes `stride` apart, `panel` `pairs · WIDTH · 2` codes aligned to 64, `out`
/// `M · WIDTH` sums.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn vnni<const M: usize>(a: *const i16, stride: usize, pairs: usize, panel: *const i16, out: *mut i32) {
    use std::arch::x86_64::*;
    let mut acc = [[_mm512_setzero_si512(); 2]; M];
    for p in 0..pairs {
        // SAFETY: `p < pairs`, within the bounds the caller promises.
        unsafe {
            let b0 = _mm512_load_si512(panel.add(p * WIDTH * 2).cast());
            let b1 = _mm512_load_si512(panel.add(p * WIDTH * 2 + 32).cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(i * stride + p * 2).cast::<i32>().read_unaligned());
                acc[0] = _mm512_dpwssd_epi32(acc[0], x, b0);
                acc[1] = _mm512_dpwssd_epi32(acc[1], x, b1);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i < M` of the tile.
        unsafe {
            _mm512_storeu_si512(out.add(i * WIDTH).cast(), acc[0]);
            _mm512_storeu_si512(out.add(i * WIDTH + 16).cast(), acc[1]);
        }
    }
}

/// Sixteen registers hold 6 rows of 16 columns, so the tile is walked in such pieces.
///
/// # Safety
/// As [`vnni`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<const M: usize>(a: *const i16, stride: usize, pairs: usize, panel: *const i16, out: *mut i32) {
    /// # Safety
    /// As the outer function, for `M` rows and 16 columns.
    #[target_feature(enable = "avx2")]
    unsafe fn piece<const M: usize>(
        a: *const i16,
        stride: usize,
        pairs: usize,
        panel: *const i16,
        out: *mut i32,
    ) {
        use std::arch::x86_64::*;
        let mut acc = [[_mm256_setzero_si256(); 2]; M];
        for p in 0..pairs {
            // SAFETY: `p < pairs`, within the bounds the caller promises.
            unsafe {
                let b0 = _mm256_load_si256(panel.add(p * WIDTH * 2).cast());
                let b1 = _mm256_load_si256(panel.add(p * WIDTH * 2 + 16).cast());
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(a.add(i * stride + p * 2).cast::<i32>().read_unaligned());
                    acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(x, b0));
                    acc[1] = _mm256_add_epi32(acc[1], _mm256_madd_epi16(x, b1));
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            // SAFETY: row `i < M` of the tile.
            unsafe {
                _mm256_storeu_si256(out.add(i * WIDTH).cast(), acc[0]);
                _mm256_storeu_si256(out.add(i * WIDTH + 8).cast(), acc[1]);
            }
        }
    }
    for half in [0, 16] {
        let mut i = 0;
        while i < M {
            // SAFETY: rows `i..` of the same operands.
            unsafe {
                let (a, panel, out) = (a.add(i * stride), panel.add(half * 2), out.add(i * WIDTH + half));
                match M - i {
                    1 => piece::<1>(a, stride, pairs, panel, out),
                    2 => piece::<2>(a, stride, pairs, panel, out),
                    3 => piece::<3>(a, stride, pairs, panel, out),
                    4 => piece::<4>(a, stride, pairs, panel, out),
                    5 => piece::<5>(a, stride, pairs, panel, out),
                    _ => piece::<6>(a, stride, pairs, panel, out),
                }
            }
            i += 6;
        }
    }
}

/// # Safety
/// As [`vnni`], without the alignment.
unsafe fn portable<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    panel: *const i16,
    out: *mut i32,
) {
    for i in 0..M {
        let mut acc = [0i32; WIDTH];
        for p in 0..pairs {
            // SAFETY: `i < M` and `p < pairs`, within the bounds the caller promises.
            let (x, b) = unsafe {
                let x = [*a.add(i * stride + p * 2), *a.add(i * stride + p * 2 + 1)];
                (x.map(i32::from), &*panel.add(p * WIDTH * 2).cast::<[[i16; 2]; WIDTH]>())
            };
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc += x[0] * i32::from(b[0]) + x[1] * i32::from(b[1]);
            }
        }
        // SAFETY: row `i < M` of the tile.
        unsafe { std::ptr::copy_nonoverlapping(acc.as_ptr(), out.add(i * WIDTH), WIDTH) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that end in a large number, and a panel.
    fn operands(k: usize) -> (Vec<f32>, Vec<f32>) {
        let mut x: Vec<f32> = (0..MAX_ROWS * k).map(|i| ((i * 31 % 97) as f32 - 48.0) / 16.0).collect();
        x.chunks_exact_mut(k).for_each(|row| row[k - 1] = 300.0);
        let panel = (0..k * WIDTH).map(|i| ((i * 17 % 89) as f32 - 44.0) / 40.0).collect();
        (x, panel)
    }

    #[test]
    fn every_path_gives_every_row_count_the_exact_sums() {
        for k in [1, 2, 37, 64] {
            let (x, panel) = operands(k);
            let rows = Codes::of(&x, k);
            let (mut codes, mut scales) = (vec![0; bytes(k)], vec![0.0; WIDTH]);
            encode(&panel, &mut codes, &mut scales);
            let mut lines = Vec::new();
            widen(&codes, &mut lines);
            for isa in Isa::available() {
                for (first, count) in (1..=MAX_ROWS).map(|count| (MAX_ROWS - count, count)) {
                    let mut tile = Tile::new();
                    multiply(isa, &rows, first, count, &lines, &scales, &mut tile);
                    for i in 0..count {
                        for j in 0..WIDTH {
                            let terms = (0..k).map(|kk| {
                                let code = codes[at(kk, j)];
                                i64::from(rows.values[(first + i) * rows.stride + kk]) * i64::from(code)
                            });
                            let exact = terms.sum::<i64>() as f32 * scales[j] * rows.scales[first + i];
                            assert_eq!(tile.row(i)[j], exact, "{isa:?}, k {k}, {count} rows, [{i}, {j}]");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn codes_are_within_half_a_step() {
        let (x, panel) = operands(37);
        let rows = Codes::of(&x, 37);
        for (i, x) in x.iter().enumerate() {
            let (row, kk) = (i / 37, i % 37);
            let back = f32::from(rows.values[row * rows.stride + kk]) * rows.scales[row];
            assert!((back - x).abs() <= 0.51 * rows.scales[row], "{x} became {back}");
        }
        let (mut codes, mut scales) = (vec![0; bytes(37)], vec![0.0; WIDTH]);
        encode(&panel, &mut codes, &mut scales);
        let mut back = vec![0.0; panel.len()];
        decode(&codes, &scales, &mut back);
        for (i, (x, back)) in panel.iter().zip(&back).enumerate() {
            assert!((back - x).abs() <= 0.51 * scales[i % WIDTH], "{x} became {back}");
        }
    }

    #[test]
    fn the_longest_sum_does_not_overflow() {
        for k in [2, 131, 4096, 65_536] {
            let rows = Codes::of(&vec![1.0; k], k);
            let worst = i64::from(rows.values[0]) * 127 * k as i64;
            assert!(worst <= i64::from(i32::MAX) && (k > 130 || rows.values[0] == i16::MAX), "{worst}");
            assert!(worst * 2 > i64::from(i32::MAX) || rows.values[0] == i16::MAX, "bits are left: {worst}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_zeros_stay_zeros() {
        let x = [[0.0, 0.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [1e-42, 0.0], [3e38, -3e38]].concat();
        let rows = Codes::of(&x, 2);
        assert_eq!(rows.values[..2], [0, 0]);
        assert!(rows.scales[0] == 0.0 && rows.scales[1].is_nan() && rows.scales[2].is_nan());
        assert!(rows.scales[3].is_finite() && rows.scales[4] > 1e33 && rows.values[8..] == [32767, -32767]);
        let mut panel = vec![1.0; 2 * WIDTH];
        panel[3] = f32::NAN;
        panel[4] = f32::INFINITY;
        let (mut codes, mut scales) = (vec![0; bytes(2)], vec![0.0; WIDTH]);
        encode(&panel, &mut codes, &mut scales);
        assert!(scales[3].is_nan() && scales[4].is_nan() && scales[5] == 1.0 / 127.0);
    }
}
