//! A weight matrix packed once at load, so that no multiply packs it again.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::integer::{Int8Panels, Integers};
use crate::cpu::storage::Storage;
use crate::cpu::tile::{Line, WIDTH, floats};
use crate::cpu::values;
use crate::weights::Held;

/// A `[out, k]` weight as panels of 32 output columns: panel p holds `w[32p + j, kk]` at `[kk, j]`, the tail padded
/// with zeros.
#[derive(Clone)]
pub struct Panels {
    storage: Storage,
    out: usize,
    k: usize,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels[{}, {}; {:?}]", self.out, self.k, self.held())
    }
}

impl Panels {
    /// Packs `weight [out, k]`, f32 or converted to it.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        Self::pack_rows(&[weight], Held::default())
    }

    /// Packs several weights `[out_i, k]` as one of `[Σ out_i, k]`, held as `held`: projections that read the same input
    /// become one multiply.
    pub fn pack_rows(weights: &[&Tensor], held: Held) -> Result<Self> {
        let Some(first) = weights.first() else { bail!("panels: no weight given") };
        let (_, k) = first.dims2()?;
        for w in weights {
            let (_, columns) = w.dims2()?;
            if columns != k {
                bail!("panels: weights of width {k} and {columns} cannot be joined");
            }
        }
        let tensors = weights.iter().map(|w| w.to_dtype(DType::F32)?.contiguous());
        let tensors = tensors.collect::<Result<Vec<Tensor>>>()?;
        let all = tensors.iter().map(|w| values("panels", w)).collect::<Result<Vec<_>>>()?;
        let rows: Vec<&[f32]> = all.iter().flat_map(|w| w.chunks_exact(k.max(1))).collect();
        Ok(Self::pack_slices(&rows, k, held))
    }

    /// The same in less memory, where that loses nothing: weights that were trained in bf16 are held in it.
    pub(crate) fn narrow(self) -> Self {
        Self { storage: self.storage.narrow(), ..self }
    }

    /// A weight `[out, k]` out of what [`Panels::int8_parts`] gave.
    pub fn from_int8_parts(out: usize, k: usize, parts: [&[u8]; 3]) -> Result<Self> {
        match Int8Panels::from_parts(out.div_ceil(WIDTH), k, parts) {
            Some(weight) => Ok(Self { storage: Storage::Int8(weight), out, k }),
            None => bail!("panels: {} bytes of codes are no weight [{out}, {k}]", parts[0].len()),
        }
    }

    /// Where it is held in int8, what that is made of, as bytes: codes, factors of groups, scales of outputs.
    pub fn int8_parts(&self) -> Option<[Cow<'_, [u8]>; 3]> {
        match self.integers() {
            Some(Integers::Int8(weight)) => Some(weight.parts()),
            _ => None,
        }
    }

    /// Packs `weight [out, k]`.
    pub(crate) fn pack_slice(weight: &[f32], k: usize) -> Self {
        Self::pack_slices(&weight.chunks_exact(k.max(1)).collect::<Vec<_>>(), k, Held::default())
    }

    pub(crate) fn pack_slices(rows: &[&[f32]], k: usize, held: Held) -> Self {
        Self::build(rows.len(), k, held, |p, panel| {
            for (j, row) in rows[p * WIDTH..].iter().take(WIDTH).enumerate() {
                for (kk, v) in row.iter().enumerate() {
                    panel[kk * WIDTH + j] = *v;
                }
            }
        })
    }

    /// Packs the transpose of `matrix [rows, columns]`, as a weight `[columns, rows]`.
    pub(crate) fn pack_transposed(matrix: &[f32], columns: usize) -> Self {
        let rows = matrix.len() / columns.max(1);
        Self::build(columns, rows, Held::default(), |p, panel| {
            let from = p * WIDTH..((p + 1) * WIDTH).min(columns);
            for (line, row) in panel.chunks_exact_mut(WIDTH).zip(matrix.chunks_exact(columns)) {
                line[..from.len()].copy_from_slice(&row[from.clone()]);
            }
        })
    }

    /// The packed transpose `[k, out]`, f32: the way back through a multiply.
    pub(crate) fn transposed(&self) -> Self {
        let (out, k) = (self.out, self.k);
        let mut wide = Vec::new();
        let all = floats(self.lines().unwrap_or_else(|| {
            self.widen(0..self.count(), &mut wide);
            &wide
        }));
        Self::build(k, out, Held::default(), |q, panel| {
            let from = q * WIDTH..((q + 1) * WIDTH).min(k);
            for (o, line) in panel.chunks_exact_mut(WIDTH).enumerate() {
                let source = &all[o / WIDTH * k * WIDTH..];
                for (to, kk) in line.iter_mut().zip(from.clone()) {
                    *to = source[kk * WIDTH + o % WIDTH];
                }
            }
        })
    }

    /// `fill(p, panel)` writes panel p, `[k, WIDTH]`, over zeros.
    fn build(out: usize, k: usize, held: Held, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        Self { storage: Storage::build(out.div_ceil(WIDTH), k, held, fill), out, k }
    }

    /// Output columns.
    pub fn out_dim(&self) -> usize {
        self.out
    }

    /// Input width.
    pub fn in_dim(&self) -> usize {
        self.k
    }

    /// What it is held in.
    pub fn held(&self) -> Held {
        self.storage.held()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.storage.bytes()
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.out.div_ceil(WIDTH)
    }

    /// All panels, `[count, k, WIDTH]`, where they are held in f32.
    pub(crate) fn lines(&self) -> Option<&[Line]> {
        self.storage.lines()
    }

    /// Some panels widened to f32, `[panels, k, WIDTH]`.
    pub(crate) fn widen(&self, panels: Range<usize>, to: &mut Vec<Line>) {
        self.storage.widen(panels, self.k, to);
    }

    /// Where it is held in codes.
    pub(crate) fn integers(&self) -> Option<Integers<'_>> {
        self.storage.integers()
    }

    /// Rows `ids` of the original weight, `[ids.len(), k]`: the embedding of a model that ties it to `lm_head`.
    pub fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.out) {
            bail!("gather: row {id} of a weight with {} rows", self.out);
        }
        let mut data = vec![0.0f32; ids.len() * self.k];
        let rows = data.par_chunks_mut(self.k.max(1)).zip(ids);
        rows.for_each(|(row, id)| self.row(*id as usize, row));
        Tensor::from_vec(data, (ids.len(), self.k), &candle_core::Device::Cpu)
    }

    /// Copies row `id` of the original weight, `[k]`.
    pub(crate) fn row(&self, id: usize, to: &mut [f32]) {
        self.storage.column(id, self.k, to);
    }
}
