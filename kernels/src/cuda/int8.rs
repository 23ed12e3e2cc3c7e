//! Weights of one byte: a quarter of f32's memory, for a model that would not fit otherwise. They are widened to the
//! type of the multiply just before it, in memory that the next one reuses, so the arithmetic is that of the wide type;
//! what is lost is the rounding of the weights, at most half of a row's largest weight / 127.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};
use cudarc::driver::CudaSlice;
use rayon::prelude::*;

use super::gpu::{Gpu, launch};
use super::matrix::Matrix;
use crate::weights::Float;

/// `[rows, columns]` with one scale a row.
pub(super) struct Int8 {
    gpu: Arc<Gpu>,
    data: CudaSlice<i8>,
    scale: CudaSlice<f32>,
    /// What it is widened to.
    dtype: Float,
    rows: usize,
    columns: usize,
}

impl Int8 {
    /// Rounds `tensors [rows_i, columns]` of the host, below one another, and copies them to `gpu`.
    pub(super) fn upload_rows(gpu: &Arc<Gpu>, tensors: &[&Tensor], dtype: Float) -> Result<Self> {
        let columns = tensors.first().map_or(Ok(0), |first| first.dim(1))?;
        if dtype == Float::F32 || columns == 0 || tensors.iter().any(|t| t.dim(1).ok() != Some(columns)) {
            bail!(
                "int8 weights are widened to f16 or bf16, and have rows of one width: {tensors:?}, {dtype:?}"
            );
        }
        let (mut data, mut scale) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            // On all cores, a row at a time.
            let first = data.len();
            data.resize(first + values.len(), 0);
            let rows = values.par_chunks_exact(columns).zip(data[first..].par_chunks_exact_mut(columns));
            scale.par_extend(rows.map(|(row, codes)| {
                let by = step(row);
                codes.iter_mut().zip(row).for_each(|(code, x)| *code = (x / by).round() as i8);
                by
            }));
        }
        let rows = scale.len();
        let (data, scale) = (gpu.upload(&data)?, gpu.upload(&scale)?);
        gpu.synchronize()?; // the host's copies may go now
        Ok(Self { gpu: gpu.clone(), data, scale, dtype, rows, columns })
    }

    /// As the multiply takes it.
    pub(super) fn widen(&self) -> Result<Matrix> {
        let mut wide = Matrix::uninit(&self.gpu, self.rows, self.columns, self.dtype)?;
        let (rows, columns) = (self.rows as i32, self.columns as i32);
        let shares = self.columns.div_ceil(16 * 256).max(1);
        launch!(&self.gpu, "dequantize", Some(self.dtype), (self.rows, shares, 1), 256, 0;
            &self.data, &self.scale, &mut wide.data, &rows, &columns);
        Ok(wide)
    }
}

/// What a row is rounded to whole numbers of; NaN of one that is not all finite, which no number stands for.
fn step(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    match row.iter().all(|x| x.is_finite()) {
        true if largest > 0.0 => largest / 127.0,
        true => 1.0,
        false => f32::NAN,
    }
}

impl std::fmt::Debug for Int8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Int8[{}, {}; {:?}]", self.rows, self.columns, self.gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        assert_eq!((step(&[0.5, -127.0, 3.0]), step(&[0.0, 0.0])), (1.0, 1.0));
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(step(&[1.0, broken, 2.0]).is_nan());
        }
    }
}
