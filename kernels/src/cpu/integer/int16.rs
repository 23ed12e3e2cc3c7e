//! A weight in 16-bit codes as they are multiplied by, with a scale for each output: half the memory of f32, and the integers'
//! rate. For a vocabulary head, whose rounding shows in every logit.

use rayon::prelude::*;

use super::{BLOCK, CodeLine, at};
use crate::cpu::tile::WIDTH;

/// The largest code of a row: 13 bits and a sign.
pub(super) const LIMIT: i32 = 8191;
/// What the codes of an output may sum up to in a block, signs aside, for its products with rows to fit 32 bits. Of weights
/// that are normally distributed the largest is then about 5 000.
const SUM: i32 = i32::MAX / LIMIT;

/// A weight `[out, k]` as panels of codes.
#[derive(Clone)]
pub(crate) struct Int16Panels {
    /// Of each panel `[⌈k/2⌉, WIDTH, 2]`: pairs of inputs, the last padded with zeros.
    codes: Vec<CodeLine>,
    /// `[panels, WIDTH]`; NaN of an output whose weights are not all finite.
    scales: Vec<f32>,
    pub(super) k: usize,
}

impl Int16Panels {
    /// Of `count` panels; `fill(p, panel)` writes the floats of panel p over zeros.
    pub(crate) fn build(count: usize, k: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let lines = lines(k);
        let mut codes = vec![CodeLine([0; 32]); count * lines];
        let mut scales = vec![0.0; count * WIDTH];
        let panels = codes.par_chunks_mut(lines.max(1)).zip(scales.par_chunks_mut(WIDTH)).enumerate();
        panels.for_each_init(
            || vec![0.0; k * WIDTH],
            |panel, (p, (codes, scales))| {
                panel.fill(0.0);
                fill(p, panel);
                (0..WIDTH).for_each(|j| scales[j] = encode(panel, j, codes));
            },
        );
        Self { codes, scales, k }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + size_of_val(&self.scales[..])
    }

    /// A panel as the multiply takes it.
    pub(crate) fn panel(&self, p: usize) -> &[CodeLine] {
        let lines = lines(self.k);
        &self.codes[p * lines..][..lines]
    }

    /// What a panel's columns are scaled by.
    pub(crate) fn scales(&self, p: usize) -> &[f32] {
        &self.scales[p * WIDTH..][..WIDTH]
    }

    /// Column `column`, `[k]`.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
        let panel = self.panel(column / WIDTH);
        for (kk, x) in to.iter_mut().enumerate() {
            let at = at(kk, column % WIDTH);
            *x = f32::from(panel[at / 32].0[at % 32]) * self.scales[column];
        }
    }
}

/// Lines of a panel.
fn lines(k: usize) -> usize {
    k.div_ceil(2) * WIDTH / 16
}

/// Column j of `panel [k, WIDTH]` as codes. Gives its scale.
fn encode(panel: &[f32], j: usize, codes: &mut [CodeLine]) -> f32 {
    let column = || panel[j..].iter().step_by(WIDTH).copied();
    if column().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    // Rounding adds half at most to each of a block's codes.
    let sum = f64::from(SUM) - BLOCK as f64 / 2.0;
    let mut unit = 0.0f64;
    for from in (0..panel.len() / WIDTH).step_by(BLOCK) {
        let block = || column().skip(from).take(BLOCK).map(|x| f64::from(x.abs()));
        unit = unit.max(block().sum::<f64>() / sum).max(block().fold(0.0, f64::max) / f64::from(i16::MAX));
    }
    if unit == 0.0 {
        return 0.0;
    }
    for (kk, x) in column().enumerate() {
        let at = at(kk, j);
        codes[at / 32].0[at % 32] = (f64::from(x) / unit).round() as i16;
    }
    unit as f32
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fill, weight as original};
    use super::*;

    #[test]
    fn codes_are_within_half_a_step() {
        for k in [1, 77, 600] {
            let weight = Int16Panels::build(2, k, fill);
            let mut back = vec![0.0; k];
            for column in 0..2 * WIDTH {
                weight.column(column, &mut back);
                let step = weight.scales[column];
                let pairs = back.iter().enumerate();
                assert!(pairs.into_iter().all(|(kk, x)| (original(kk, column) - x).abs() <= 0.501 * step));
            }
        }
    }

    /// Whatever the weights are, a block's sum fits; and a code is used, or the sum's bits are.
    #[test]
    fn the_longest_sum_fits() {
        let spike = |_: usize, panel: &mut [f32]| panel[..WIDTH].fill(-7.0);
        let flat = |_: usize, panel: &mut [f32]| panel.fill(-1.0);
        for k in [1, 2, 131, 512, 3000] {
            for (weight, codes) in
                [(Int16Panels::build(1, k, spike), 1), (Int16Panels::build(1, k, flat), k.min(BLOCK) as i64)]
            {
                let code = |kk| i64::from(weight.codes[at(kk, 3) / 32].0[at(kk, 3) % 32]);
                let sum = (0..k.min(BLOCK)).map(|kk| code(kk).abs()).sum::<i64>();
                assert!(sum * i64::from(LIMIT) <= i64::from(i32::MAX), "{sum}");
                assert!(sum > i64::from(SUM) - 2 * BLOCK as i64 || code(0) == i64::from(-i16::MAX));
                assert_eq!((0..k.min(BLOCK)).filter(|kk| code(*kk) != 0).count() as i64, codes);
            }
        }
    }
}
