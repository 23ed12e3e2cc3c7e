//! A weight matrix packed once at load, so that no multiply packs it again.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::tile::{Line, WIDTH, floats, floats_mut};

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
        let mut lines = vec![Line([0.0; 16]); out.div_ceil(WIDTH) * k * WIDTH / 16];
        let mut at = 0;
        for w in weights {
            let w = w.to_dtype(DType::F32)?.contiguous()?;
            let (storage, layout) = w.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else {
                bail!("panels: a CPU tensor expected")
            };
            let data = crate::cpu::f32_slice("panels", storage, layout)?;
            let rows = data.len() / k.max(1);
            // Whole panels in parallel; a panel that two weights share is visited once for each.
            let last = (at + rows).div_ceil(WIDTH);
            let first = at / WIDTH;
            floats_mut(&mut lines)[first * k * WIDTH..last * k * WIDTH]
                .par_chunks_mut((k * WIDTH).max(1))
                .enumerate()
                .for_each(|(p, panel)| {
                    for j in 0..WIDTH {
                        let column = (first + p) * WIDTH + j;
                        if column >= at && column < at + rows {
                            let row = &data[(column - at) * k..(column - at + 1) * k];
                            for (kk, v) in row.iter().enumerate() {
                                panel[kk * WIDTH + j] = *v;
                            }
                        }
                    }
                });
            at += rows;
        }
        Ok(Self { lines, out, k })
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
        data.par_chunks_mut(self.k.max(1)).zip(ids).for_each(|(row, id)| {
            let panel = floats(self.panel(*id as usize / WIDTH));
            let j = *id as usize % WIDTH;
            for (kk, v) in row.iter_mut().enumerate() {
                *v = panel[kk * WIDTH + j];
            }
        });
        Tensor::from_vec(data, (ids.len(), self.k), &candle_core::Device::Cpu)
    }
}
