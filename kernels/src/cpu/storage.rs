//! How packed weights are held: as floats, in full or in half, or as codes of 8 or 16 bits. What is held in less than it is
//! multiplied in is widened panel by panel where it is used, once for all rows that pass by, so that memory shrinks and the
//! multiply's inner loop stays the same.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::integer::{Int8Panels, Int16Panels, Integers};
use super::isa::multiversion;
use super::tile::{Line, WIDTH, floats, floats_mut};
use crate::weights::{Float, Held};

/// Panels `[k, WIDTH]`, one after the other.
#[derive(Clone)]
pub(crate) enum Storage {
    F32(Vec<Line>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Int8(Int8Panels),
    Int16(Int16Panels),
}

impl Storage {
    /// `count` panels; `fill(p, panel)` writes the floats of panel p over zeros.
    pub(crate) fn build(count: usize, k: usize, held: Held, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let size = k * WIDTH;
        match held {
            Held::Float(Float::F32) => {
                let mut lines = vec![Line([0.0; 16]); count * size / 16];
                let panels = floats_mut(&mut lines).par_chunks_mut(size.max(1)).enumerate();
                panels.for_each(|(p, panel)| fill(p, panel));
                Self::F32(lines)
            }
            Held::Float(Float::F16) => Self::F16(halves(f16::ZERO, count, size, fill)),
            Held::Float(Float::BF16) => Self::Bf16(halves(bf16::ZERO, count, size, fill)),
            Held::Int8 => Self::Int8(Int8Panels::build(count, k, fill)),
            Held::Int16 => Self::Int16(Int16Panels::build(count, k, fill)),
        }
    }

    /// The same in bf16, where that holds every number as it is.
    pub(crate) fn narrow(self) -> Self {
        let Self::F32(lines) = &self else { return self };
        let is_exact = |line: &Line| line.0.iter().all(|x| x.to_bits().trailing_zeros() >= 16);
        if !lines.par_iter().all(is_exact) {
            return self;
        }
        let mut all = vec![bf16::ZERO; lines.len() * 16];
        let parts = all.par_chunks_mut(1 << 16).zip(floats(lines).par_chunks(1 << 16));
        parts.for_each(|(to, from)| to.convert_from_f32_slice(from));
        Self::Bf16(all)
    }

    /// What it is held in.
    pub(crate) fn held(&self) -> Held {
        match self {
            Self::F32(_) => Held::Float(Float::F32),
            Self::F16(_) => Held::Float(Float::F16),
            Self::Bf16(_) => Held::Float(Float::BF16),
            Self::Int8(_) => Held::Int8,
            Self::Int16(_) => Held::Int16,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(lines) => size_of_val(&lines[..]),
            Self::F16(all) => size_of_val(&all[..]),
            Self::Bf16(all) => size_of_val(&all[..]),
            Self::Int8(weight) => weight.bytes(),
            Self::Int16(weight) => weight.bytes(),
        }
    }

    /// All panels, where they are held in f32.
    pub(crate) fn lines(&self) -> Option<&[Line]> {
        match self {
            Self::F32(lines) => Some(lines),
            _ => None,
        }
    }

    /// Floats of `panels`.
    pub(crate) fn widen(&self, panels: Range<usize>, k: usize, to: &mut Vec<Line>) {
        let size = k * WIDTH;
        let range = panels.start * size..panels.end * size;
        to.resize(range.len() / 16, Line([0.0; 16]));
        match self {
            Self::F32(lines) => to.copy_from_slice(&lines[range.start / 16..range.end / 16]),
            Self::F16(all) => all[range].convert_to_f32_slice(floats_mut(to)),
            Self::Bf16(all) => widen_bf16(&all[range], floats_mut(to)),
            Self::Int8(_) | Self::Int16(_) => {
                let mut column = vec![0.0; k];
                for (p, to) in panels.zip(floats_mut(to).chunks_exact_mut(size.max(1))) {
                    for j in 0..WIDTH {
                        self.column(p * WIDTH + j, k, &mut column);
                        to[j..].iter_mut().step_by(WIDTH).zip(&column).for_each(|(to, x)| *to = *x);
                    }
                }
            }
        }
    }

    /// Where it is held in codes.
    pub(crate) fn integers(&self) -> Option<Integers<'_>> {
        match self {
            Self::F32(_) | Self::F16(_) | Self::Bf16(_) => None,
            Self::Int8(weight) => Some(Integers::Int8(weight)),
            Self::Int16(weight) => Some(Integers::Int16(weight)),
        }
    }

    /// Column `column`, `[k]`.
    pub(crate) fn column(&self, column: usize, k: usize, to: &mut [f32]) {
        let (p, j) = (column / WIDTH, column % WIDTH);
        let at = |kk: usize| (p * k + kk) * WIDTH + j;
        let values = to.iter_mut().enumerate();
        match self {
            Self::F32(lines) => {
                let all = floats(lines);
                values.for_each(|(kk, v)| *v = all[at(kk)]);
            }
            Self::F16(all) => values.for_each(|(kk, v)| *v = all[at(kk)].to_f32()),
            Self::Bf16(all) => values.for_each(|(kk, v)| *v = all[at(kk)].to_f32()),
            Self::Int8(weight) => weight.column(column, to),
            Self::Int16(weight) => weight.column(column, to),
        }
    }
}

/// `count` panels of `size` numbers, filled in f32 and rounded.
fn halves<T: Copy + Send + Sync>(
    zero: T,
    count: usize,
    size: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<T>
where
    [T]: HalfFloatSliceExt,
{
    let mut all = vec![zero; count * size];
    let panels = all.par_chunks_mut(size.max(1)).enumerate();
    panels.for_each_init(
        || vec![0.0f32; size],
        |panel, (p, to)| {
            panel.fill(0.0);
            fill(p, panel);
            to.convert_from_f32_slice(panel);
        },
    );
    all
}

multiversion! {
    /// bf16 is the upper half of an f32.
    fn widen_bf16(from: &[bf16], to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}
