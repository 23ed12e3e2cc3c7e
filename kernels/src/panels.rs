//! A weight matrix packed once at load, so that no multiply packs it again.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::tile::{Line, WIDTH, floats, floats_mut};
use crate::cpu::values;

/// A `[out, k]` weight as panels of 32 output columns: panel p holds `w[32p + j, kk]` at `[kk, j]`, the tail padded
/// with zeros. f32.
#[derive(Clone)]
pub struct Panels {
    lines: Vec<Line>,
    out: usize,
    k: usize,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels[{}, {}]", self.out, self.k)
    }
}

impl Panels {
    /// Packs `weight [out, k]`, f32 or converted to it.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        Self::pack_rows(&[weight])
    }

    /// Packs several weights `[out_i, k]` as one of `[Σ out_i, k]`: projections that read the same input become one multiply.
    pub fn pack_rows(weights: &[&Tensor]) -> Result<Self> {
        let Some(first) = weights.first() else { bail!("panels: no weight given") };
        let (_, k) = first.dims2()?;
        let mut out = 0;
        for w in weights {
            let (rows, cols) = w.dims2()?;
            if cols != k {
                bail!("panels: weights of width {k} and {cols} cannot be joined");
            }
            out += rows;
        }
        let mut packed = Self::zeros(out, k);
        let mut at = 0;
        for w in weights {
            let w = w.to_dtype(DType::F32)?.contiguous()?;
            let w = values("panels", &w)?;
            packed.fill(at, &w);
            at += w.len() / k.max(1);
        }
        Ok(packed)
    }

    /// Packs `weight [out, k]`.
    pub(crate) fn pack_slice(weight: &[f32], k: usize) -> Self {
        let mut packed = Self::zeros(weight.len() / k.max(1), k);
        packed.fill(0, weight);
        packed
    }

    /// Rows of a weight to columns `at ..` of the panels.
    fn fill(&mut self, at: usize, weight: &[f32]) {
        let k = self.k;
        let rows = weight.len() / k.max(1);
        // Whole panels in parallel; a panel that two weights share is visited once for each.
        let (first, last) = (at / WIDTH, (at + rows).div_ceil(WIDTH));
        floats_mut(&mut self.lines)[first * k * WIDTH..last * k * WIDTH]
            .par_chunks_mut((k * WIDTH).max(1))
            .enumerate()
            .for_each(|(p, panel)| {
                for j in 0..WIDTH {
                    let column = (first + p) * WIDTH + j;
                    if column >= at && column < at + rows {
                        let row = &weight[(column - at) * k..(column - at + 1) * k];
                        for (kk, v) in row.iter().enumerate() {
                            panel[kk * WIDTH + j] = *v;
                        }
                    }
                }
            });
    }

    /// Packs the transpose of `matrix [rows, columns]`, as a weight `[columns, rows]`.
    pub(crate) fn pack_transposed(matrix: &[f32], columns: usize) -> Self {
        let rows = matrix.len() / columns.max(1);
        let mut packed = Self::zeros(columns, rows);
        floats_mut(&mut packed.lines).par_chunks_mut((rows * WIDTH).max(1)).enumerate().for_each(
            |(p, panel)| {
                let from = p * WIDTH..((p + 1) * WIDTH).min(columns);
                for (line, row) in panel.chunks_exact_mut(WIDTH).zip(matrix.chunks_exact(columns)) {
                    line[..from.len()].copy_from_slice(&row[from.clone()]);
                }
            },
        );
        packed
    }

    /// The packed transpose `[k, out]`: the way back through a multiply.
    pub(crate) fn transposed(&self) -> Self {
        let (out, k) = (self.out, self.k);
        let mut packed = Self::zeros(k, out);
        floats_mut(&mut packed.lines).par_chunks_mut((out * WIDTH).max(1)).enumerate().for_each(
            |(q, panel)| {
                let from = q * WIDTH..((q + 1) * WIDTH).min(k);
                for (o, line) in panel.chunks_exact_mut(WIDTH).enumerate() {
                    let source = floats(self.panel(o / WIDTH));
                    for (to, kk) in line.iter_mut().zip(from.clone()) {
                        *to = source[kk * WIDTH + o % WIDTH];
                    }
                }
            },
        );
        packed
    }

    fn zeros(out: usize, k: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); out.div_ceil(WIDTH) * k * WIDTH / 16], out, k }
    }

    /// Output columns.
    pub fn out_dim(&self) -> usize {
        self.out
    }

    /// Input width.
    pub fn in_dim(&self) -> usize {
        self.k
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.out.div_ceil(WIDTH)
    }

    /// Panel `p`, `[k, WIDTH]`.
    pub(crate) fn panel(&self, p: usize) -> &[Line] {
        let size = self.k * WIDTH / 16;
        &self.lines[p * size..(p + 1) * size]
    }

    /// Rows `ids` of the original weight, `[ids.len(), k]`: the embedding of a model that ties it to `lm_head`.
    pub fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.out) {
            bail!("gather: row {id} of a weight with {} rows", self.out);
        }
        let mut data = vec![0.0f32; ids.len() * self.k];
        data.par_chunks_mut(self.k.max(1)).zip(ids).for_each(|(row, id)| self.row(*id as usize, row));
        Tensor::from_vec(data, (ids.len(), self.k), &candle_core::Device::Cpu)
    }

    /// Copies row `id` of the original weight, `[k]`.
    pub(crate) fn row(&self, id: usize, to: &mut [f32]) {
        let panel = floats(self.panel(id / WIDTH));
        for (kk, v) in to.iter_mut().enumerate() {
            *v = panel[kk * WIDTH + id % WIDTH];
        }
    }
}
