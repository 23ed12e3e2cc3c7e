//! Rows in device memory.

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use rayon::prelude::*;

use super::error::GpuError;
use super::gpu::Gpu;
use crate::weights::Float;

/// `[rows, columns]`, row major.
pub struct Matrix {
    pub(super) gpu: Arc<Gpu>,
    pub(super) data: CudaSlice<u8>,
    pub(super) dtype: Float,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix[{}, {}; {}, {:?}]", self.rows, self.columns, self.dtype.suffix(), self.gpu)
    }
}

impl Matrix {
    /// Copies `tensor [rows, columns]` of the host to `gpu` as `dtype`.
    pub fn upload(gpu: &Arc<Gpu>, tensor: &Tensor, dtype: Float) -> Result<Self> {
        Self::upload_rows(gpu, &[tensor], dtype)
    }

    /// Several `[rows_i, columns]` below one another.
    pub fn upload_rows(gpu: &Arc<Gpu>, tensors: &[&Tensor], dtype: Float) -> Result<Self> {
        let Some(first) = tensors.first() else { bail!("matrix: nothing to upload") };
        let columns = first.dim(1)?;
        let mut rows = 0;
        for tensor in tensors {
            if tensor.dim(1)? != columns {
                bail!("matrix: rows of {columns} and of {} cannot be joined", tensor.dim(1)?);
            }
            rows += tensor.dim(0)?;
        }
        let mut matrix = Self::uninit(gpu, rows, columns, dtype)?;
        let mut at = 0;
        for tensor in tensors {
            at += matrix.fill(at, tensor)?;
        }
        Ok(matrix)
    }

    /// Copies all elements of `tensor` to byte `at`; how many bytes they are.
    fn fill(&mut self, at: usize, tensor: &Tensor) -> Result<usize> {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("matrix: a CPU tensor expected, got {tensor:?}");
        };
        match (storage, self.dtype) {
            (CpuStorage::F32(x), Float::F32) => self.put(at, &x[start..end]),
            (CpuStorage::F32(x), Float::F16) => self.put(at, &narrowed(&x[start..end], f16::from_f32)),
            (CpuStorage::F32(x), Float::BF16) => self.put(at, &narrowed(&x[start..end], bf16::from_f32)),
            (CpuStorage::F16(x), Float::F16) => self.put(at, &x[start..end]),
            (CpuStorage::BF16(x), Float::BF16) => self.put(at, &x[start..end]),
            _ => self.fill(at, &tensor.to_dtype(self.dtype.dtype())?),
        }
    }

    fn put<T: Number>(&mut self, at: usize, numbers: &[T]) -> Result<usize> {
        // SAFETY: plain numbers, all of whose bytes are written; u8 has no alignment.
        let bytes =
            unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) };
        let mut to = self.data.slice_mut(at..at + bytes.len());
        self.gpu.stream.memcpy_htod(bytes, &mut to).map_err(GpuError::from)?;
        self.gpu.synchronize()?; // the host's numbers may go now
        Ok(bytes.len())
    }

    /// To be written by what is queued next.
    pub(super) fn uninit(gpu: &Arc<Gpu>, rows: usize, columns: usize, dtype: Float) -> Result<Self> {
        let data = gpu.uninit(rows * columns * dtype.size())?;
        Ok(Self { gpu: gpu.clone(), data, dtype, rows, columns })
    }

    /// `(rows, columns)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Of an element.
    pub fn dtype(&self) -> Float {
        self.dtype
    }

    /// Where it lies.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// A copy on the host, f32. Waits for what is queued.
    pub fn download(&self) -> Result<Tensor> {
        let len = self.rows * self.columns;
        let mut bytes = vec![0u8; len * self.dtype.size()];
        if len > 0 {
            let from = self.data.slice(..bytes.len());
            self.gpu.stream.memcpy_dtoh(&from, &mut bytes).map_err(GpuError::from)?;
        }
        self.gpu.synchronize()?;
        let tensor = Tensor::from_raw_buffer(
            &bytes,
            self.dtype.dtype(),
            &[self.rows, self.columns],
            &candle_core::Device::Cpu,
        )?;
        tensor.to_dtype(DType::F32)
    }

    /// A copy on another device, from one memory to the other. Neither host waits.
    pub fn to(&self, gpu: &Arc<Gpu>) -> Result<Self> {
        let mut copy = Self::uninit(gpu, self.rows, self.columns, self.dtype)?;
        gpu.stream.memcpy_dtod(&self.data, &mut copy.data).map_err(GpuError::from)?;
        // Its memory is freed in the order of its own stream, which must not come before the copy's end.
        let copied = gpu.stream.record_event(None).map_err(GpuError::from)?;
        self.gpu.stream.wait(&copied).map_err(GpuError::from)?;
        Ok(copy)
    }
}

/// One f32 row: the weight of a norm. What is multiplied by it leaves the op as `dtype`.
pub struct Vector {
    pub(super) gpu: Arc<Gpu>,
    pub(super) data: CudaSlice<f32>,
    pub(super) dtype: Float,
    pub(super) len: usize,
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vector[{}; {:?}]", self.len, self.gpu)
    }
}

impl Vector {
    /// Copies `tensor [len]` of the host to `gpu`.
    pub fn upload(gpu: &Arc<Gpu>, tensor: &Tensor, dtype: Float) -> Result<Self> {
        let values = tensor.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let data = gpu.upload(&values)?;
        gpu.synchronize()?;
        Ok(Self { gpu: gpu.clone(), data, dtype, len: values.len() })
    }
}

/// An element of a matrix: a number without padding.
trait Number {}
impl Number for f32 {}
impl Number for f16 {}
impl Number for bf16 {}

/// On all cores: a model has billions of them.
fn narrowed<T: Send>(values: &[f32], narrow: fn(f32) -> T) -> Vec<T> {
    values.par_iter().with_min_len(1 << 16).map(|x| narrow(*x)).collect()
}
