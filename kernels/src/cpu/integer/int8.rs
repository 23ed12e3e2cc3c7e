//! A weight of a byte an element, times a whole number for each [`GROUP`] of inputs, times a scale for each output. It is
//! widened for the multiply, which takes 16 bits anyway, so that the groups' factors cost nothing as they are whole.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK, CodeLine, at};
use crate::cpu::isa::multiversion;
use crate::cpu::tile::WIDTH;

/// Largest code of a weight.
const WEIGHT: f32 = 127.0;
/// Inputs that share a factor.
const GROUP: usize = 16;
/// Largest factor of a group.
const FACTOR: f32 = 32.0;
/// Codes of a pair of inputs in a panel.
const PAIR: usize = 2 * WIDTH;

/// A weight `[out, k]` as panels of codes.
#[derive(Clone)]
pub(crate) struct Int8Panels {
    /// Of each panel `[⌈k/2⌉, WIDTH, 2]`: pairs of inputs, the last padded with zeros. Signed, in two's complement.
    codes: Vec<u8>,
    /// Of each panel `[⌈k/GROUP⌉, WIDTH]`.
    factors: Vec<u8>,
    /// `[panels, WIDTH]`; NaN of an output whose weights are not all finite.
    scales: Vec<f32>,
    /// The largest code a row may have for the sums to fit 32 bits.
    pub(super) limit: i32,
    pub(super) k: usize,
}

impl Int8Panels {
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

    /// Of what [`Int8Panels::parts`] gave of a weight of `count` panels; none of what cannot be such.
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

#[cfg(test)]
mod tests {
    use super::super::tests::{fill, weight as original};
    use super::*;

    #[test]
    fn codes_are_within_half_a_step() {
        let k = 77;
        let weight = Int8Panels::build(2, k, fill);
        let mut lines = Vec::new();
        weight.pairs(0..2, &mut lines);
        let mut back = vec![0.0; k];
        for column in 0..2 * WIDTH {
            weight.column(column, &mut back);
            let whole: Vec<f32> = (0..k).map(|kk| original(kk, column)).collect();
            let largest = |part: &[f32]| part.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for (group, back) in whole.chunks(GROUP).zip(back.chunks(GROUP)) {
                // A factor is rounded up to a whole one.
                let step = largest(group) / WEIGHT + largest(&whole) / WEIGHT / FACTOR;
                assert!(group.iter().zip(back).all(|(a, b)| (a - b).abs() <= 0.5 * step));
            }
            let lines = &lines[column / WIDTH * lines.len() / 2..];
            for (kk, back) in back.iter().enumerate() {
                let at = at(kk, column % WIDTH);
                assert_eq!(f32::from(lines[at / 32].0[at % 32]) * weight.scales[column], *back, "widened");
            }
        }
    }

    #[test]
    fn the_longest_sum_fits() {
        for k in [2, 131, 512, 65_536] {
            let weight = Int8Panels::build(1, k, |_, panel| panel.fill(-1.0));
            let sum = WEIGHT as i64 * FACTOR as i64 * BLOCK.min(k) as i64;
            let worst = sum * i64::from(weight.limit);
            assert!(worst <= i64::from(i32::MAX), "{worst}");
            assert!(
                worst + sum > i64::from(i32::MAX) || weight.limit == i32::from(i16::MAX),
                "bits are left"
            );
        }
    }
}
