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

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::math;
use super::output;
use super::tile::{MAX_ROWS, Tile, WIDTH};

/// Largest code of a weight.
const WEIGHT: f32 = 127.0;
/// Inputs that share a factor.
const GROUP: usize = 16;
/// Largest factor of a group.
const FACTOR: f32 = 32.0;
/// Inputs whose products are summed up as integers.
const BLOCK: usize = 256;

/// A weight `[out, k]` as panels of codes.
#[derive(Clone)]
pub(crate) struct Quantized {
    /// Of each panel `[⌈k/2⌉, WIDTH, 2]`: pairs of inputs, the last padded with zeros. Signed, in two's complement.
    codes: Vec<u8>,
    /// Of each panel `[⌈k/GROUP⌉, WIDTH]`.
    factors: Vec<u8>,
    /// `[panels, WIDTH]`; NaN of an output whose weights are not all finite.
    scales: Vec<f32>,
    /// The largest code a row may have for the sums to fit 32 bits.
    limit: i32,
    k: usize,
}

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

impl Quantized {
    /// Of `count` panels; `fill(p, panel)` writes the floats of panel p over zeros.
    pub(crate) fn build(count: usize, k: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let (bytes, groups) = (k.div_ceil(2) * 2 * WIDTH, k.div_ceil(GROUP) * WIDTH);
        let mut codes = vec![0; count * bytes];
        let mut factors = vec![0; count * groups];
        let mut scales = vec![0.0; count * WIDTH];
        let panels = codes.par_chunks_mut(bytes.max(1)).zip(factors.par_chunks_mut(groups.max(1)));
        let panels = panels.zip(scales.par_chunks_mut(WIDTH)).enumerate();
        panels.for_each_init(
            || vec![0.0; k * WIDTH],
            |panel, (p, ((codes, factors), scales))| {
                panel.fill(0.0);
                fill(p, panel);
                (0..WIDTH).for_each(|j| scales[j] = encode(panel, j, codes, factors));
            },
        );
        Self::limited(codes, factors, scales, k)
    }

    /// What it is made of, as bytes: codes, factors, scales (f32, little endian).
    pub(crate) fn parts(&self) -> [Cow<'_, [u8]>; 3] {
        let scales: Vec<u8> = self.scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        [(&self.codes[..]).into(), (&self.factors[..]).into(), scales.into()]
    }

    /// Of what [`Quantized::parts`] gave of a weight of `count` panels; none of what cannot be such.
    pub(crate) fn from_parts(count: usize, k: usize, [codes, factors, scales]: [&[u8]; 3]) -> Option<Self> {
        let (bytes, groups) = (k.div_ceil(2) * 2 * WIDTH, k.div_ceil(GROUP) * WIDTH);
        let lengths = [count * bytes, count * groups, count * WIDTH * size_of::<f32>()];
        if [codes, factors, scales].map(<[u8]>::len) != lengths {
            return None;
        }
        let scales = scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Some(Self::limited(codes.to_vec(), factors.to_vec(), scales, k))
    }

    fn limited(codes: Vec<u8>, factors: Vec<u8>, scales: Vec<f32>, k: usize) -> Self {
        let mut all = Self { codes, factors, scales, limit: 0, k };
        let largest = (0..all.scales.len() / WIDTH).into_par_iter().map(|p| {
            let (codes, factors) = all.panel(p);
            largest_sum(codes, factors)
        });
        let largest = largest.max().unwrap_or(0);
        all.limit = i32::MAX / largest.max(i32::MAX / i32::from(i16::MAX));
        all
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.factors.len() + size_of_val(&self.scales[..])
    }

    /// The codes of a panel, and its groups' factors.
    fn panel(&self, p: usize) -> (&[u8], &[u8]) {
        let (bytes, groups) = (self.k.div_ceil(2) * 2 * WIDTH, self.k.div_ceil(GROUP) * WIDTH);
        (&self.codes[p * bytes..][..bytes], &self.factors[p * groups..][..groups])
    }

    /// What a panel's columns are scaled by.
    pub(crate) fn scales(&self, p: usize) -> &[f32] {
        &self.scales[p * WIDTH..][..WIDTH]
    }

    /// Panels as the multiply takes them: codes times factors.
    pub(crate) fn pairs(&self, panels: Range<usize>, to: &mut Vec<CodeLine>) {
        let lines = self.k.div_ceil(2) * WIDTH / 16;
        to.resize(panels.len() * lines, CodeLine([0; 32]));
        for (p, to) in panels.zip(to.chunks_exact_mut(lines.max(1))) {
            let (codes, factors) = self.panel(p);
            widen(codes, factors, to);
        }
    }

    /// Column `column`, `[k]`.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
        let (codes, factors) = self.panel(column / WIDTH);
        let j = column % WIDTH;
        for (kk, x) in to.iter_mut().enumerate() {
            let factor = f32::from(factors[kk / GROUP * WIDTH + j]);
            *x = f32::from(codes[at(kk, j)].cast_signed()) * factor * self.scales[column];
        }
    }
}

/// Where a panel has its element `[kk, j]`.
fn at(kk: usize, j: usize) -> usize {
    (kk / 2 * WIDTH + j) * 2 + kk % 2
}

/// Column j of `panel [k, WIDTH]` as codes and factors. Gives its scale.
fn encode(panel: &[f32], j: usize, codes: &mut [u8], factors: &mut [u8]) -> f32 {
    let column: Vec<f32> = panel[j..].iter().step_by(WIDTH).copied().collect();
    let largest = |part: &[f32]| part.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let unit = largest(&column) / WEIGHT / FACTOR;
    if column.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    if unit == 0.0 {
        return 0.0;
    }
    for (g, group) in column.chunks(GROUP).enumerate() {
        let factor = (largest(group) / WEIGHT / unit).ceil().clamp(1.0, FACTOR);
        factors[g * WIDTH + j] = factor as u8;
        for (kk, x) in group.iter().enumerate() {
            let code = (x / (unit * factor)).round().clamp(-WEIGHT, WEIGHT);
            codes[at(g * GROUP + kk, j)] = (code as i8).cast_unsigned();
        }
    }
    unit
}

multiversion! {
    /// The largest sum of a column's block in a panel, signs aside.
    fn largest_sum(codes: &[u8], factors: &[u8]) -> i32 {
        const PAIR: usize = 2 * WIDTH;
        let mut largest = 0;
        let blocks = codes.chunks(BLOCK / 2 * PAIR).zip(factors.chunks(BLOCK / GROUP * WIDTH));
        for (codes, factors) in blocks {
            let mut sums = [0i32; PAIR];
            for (codes, factors) in codes.chunks(GROUP / 2 * PAIR).zip(factors.chunks_exact(WIDTH)) {
                for pair in codes.chunks_exact(PAIR) {
                    for i in 0..PAIR {
                        sums[i] += i32::from(pair[i].cast_signed()).abs() * i32::from(factors[i / 2]);
                    }
                }
            }
            for column in sums.chunks_exact(2) {
                largest = largest.max(column[0] + column[1]);
            }
        }
        largest
    }
}

multiversion! {
    fn widen(codes: &[u8], factors: &[u8], to: &mut [CodeLine]) {
        const PAIR: usize = 2 * WIDTH;
        let groups = codes.chunks(GROUP / 2 * PAIR).zip(factors.chunks_exact(WIDTH));
        for ((codes, factors), lines) in groups.zip(to.chunks_mut(GROUP / 2 * PAIR / 32)) {
            let mut twice = [0i16; PAIR];
            for (to, factor) in twice.chunks_exact_mut(2).zip(factors) {
                to.fill(i16::from(*factor));
            }
            for (codes, lines) in codes.chunks_exact(PAIR).zip(lines.chunks_exact_mut(2)) {
                for (h, line) in lines.iter_mut().enumerate() {
                    for i in 0..32 {
                        line.0[i] = i16::from(codes[h * 32 + i].cast_signed()) * twice[h * 32 + i];
                    }
                }
            }
        }
    }
}

impl Codes {
    /// Of rows `x [n, k]` that `weight` is multiplied by.
    pub(crate) fn of(x: &[f32], weight: &Quantized) -> Self {
        let k = weight.k;
        let n = x.len() / k.max(1);
        let stride = k.div_ceil(2) * 2;
        let mut scales = vec![0.0f32; n];
        let limit = weight.limit as f32;
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
