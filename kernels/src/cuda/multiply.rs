//! `x Wᵀ`, plus bias or plus residual, by cuBLASLt.
//!
//! cuBLASLt counts columns first: a row-major `[n, k]` is its `[k, n]`. So the weight is its transposed left operand, `x`
//! its right one and the outputs its rows, along which a bias is added. A residual is its C with β = 1: it costs no pass
//! of its own. Sums are f32 whatever the type.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::bail;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::error::GpuError;
use super::gpu::Gpu;
use super::matrix::Matrix;
use crate::weights::Float;

/// Scratch of the library, bytes: what NVIDIA advises for Hopper, more than others need.
const WORKSPACE: usize = 32 << 20;
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;
/// Shapes whose algorithm is remembered.
const REMEMBERED: usize = 4096;

/// A multiply as the library chooses algorithms for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    n: usize,
    k: usize,
    out: usize,
    from: Float,
    to: Float,
    bias: bool,
}

/// cuBLASLt on one stream.
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    algorithms: Mutex<HashMap<Shape, cublasLtMatmulAlgo_t>>,
}

// SAFETY: the library's handles may be used from any thread; its algorithms are plain data.
unsafe impl Send for Multiplier {}
// SAFETY: as above; work goes to one stream, in whose order the workspace is used.
unsafe impl Sync for Multiplier {}

impl Drop for Multiplier {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used by nobody else.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// What else goes into an output.
#[derive(Clone, Copy, Default)]
pub(super) struct Extra<'a> {
    /// `[1, out]` in the type of the output.
    pub(super) bias: Option<&'a Matrix>,
    /// `[n, out]`, f32: then the output is f32 too.
    pub(super) residual: Option<&'a Matrix>,
}

impl Multiplier {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self, GpuError> {
        let handle = result::create_handle()?;
        // SAFETY: scratch, written before it is read by the library alone.
        let workspace = unsafe { stream.alloc(WORKSPACE) }?;
        Ok(Self { handle, workspace, stream, algorithms: Mutex::default() })
    }

    /// Queues `y = x · weightᵀ` for as many rows of each as `y` has rows and columns, from rows `x_first` and `first` on.
    fn queue(
        &self,
        (x, x_first): (&Matrix, usize),
        (weight, first): (&Matrix, usize),
        extra: Extra<'_>,
        y: &mut Matrix,
    ) -> Result<(), GpuError> {
        let shape = Shape {
            n: y.rows,
            k: x.columns,
            out: y.columns,
            from: x.dtype,
            to: y.dtype,
            bias: extra.bias.is_some(),
        };
        let problem = Problem::new(&shape)?;
        if let Some(bias) = extra.bias {
            let (pointer, _order) = bias.data.device_ptr(&self.stream);
            problem.describe(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer)?;
        }
        let algorithm = self.algorithm(shape, &problem)?;
        let (alpha, beta) = (1.0f32, if extra.residual.is_some() { 1.0f32 } else { 0.0 });
        let (w, _w) = weight.data.device_ptr(&self.stream);
        let w = w + (first * weight.columns * weight.dtype.size()) as u64;
        let (a, _a) = x.data.device_ptr(&self.stream);
        let a = a + (x_first * x.columns * x.dtype.size()) as u64;
        let residual = extra.residual.map(|r| r.data.device_ptr(&self.stream));
        let (d, _d) = y.data.device_ptr_mut(&self.stream);
        let c = residual.as_ref().map_or(d, |(c, _)| *c);
        let (scratch, _scratch) = self.workspace.device_ptr(&self.stream);
        // SAFETY: the pointers are of matrices with the shapes of the layouts (the caller has compared them), alive until
        // their memory is freed in the order of the same stream.
        unsafe {
            result::matmul(
                self.handle,
                problem.multiply,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                w as *const _,
                problem.weight,
                a as *const _,
                problem.x,
                c as *const _,
                problem.y,
                d as *mut _,
                problem.y,
                &raw const algorithm,
                scratch as *mut _,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )?;
        }
        Ok(())
    }

    fn algorithm(&self, shape: Shape, problem: &Problem) -> Result<cublasLtMatmulAlgo_t, CublasError> {
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = algorithms.get(&shape) {
            return Ok(*algorithm);
        }
        let (preference, size) = (result::create_matmul_pref()?, WORKSPACE);
        let workspace = cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is a usize; all handles are alive.
        let found = unsafe {
            let set = result::set_matmul_pref_attribute(
                preference,
                workspace,
                (&raw const size).cast(),
                size_of::<usize>(),
            );
            let found = set.and_then(|()| {
                let (w, x, y) = (problem.weight, problem.x, problem.y);
                result::get_matmul_algo_heuristic(self.handle, problem.multiply, w, x, y, y, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            found?
        };
        if algorithms.len() >= REMEMBERED {
            algorithms.clear();
        }
        algorithms.insert(shape, found.algo);
        Ok(found.algo)
    }
}

/// The library's description of a multiply.
struct Problem {
    multiply: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    fn new(shape: &Shape) -> Result<Self, CublasError> {
        let (n, k, out) = (shape.n as u64, shape.k as u64, shape.out as u64);
        let f32 = sys::cudaDataType_t::CUDA_R_32F;
        let layout = |dtype, rows, columns| result::create_matrix_layout(dtype, rows, columns, rows as i64);
        let problem = Self {
            multiply: result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)?,
            weight: layout(data_type(shape.from), k, out)?,
            x: layout(data_type(shape.from), k, n)?,
            y: layout(data_type(shape.to), out, n)?,
        };
        problem.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            problem.describe(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            problem.describe(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(shape.to))?;
        }
        Ok(problem)
    }

    fn describe<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        // SAFETY: `value` has the type that the attribute has; the library copies it.
        unsafe {
            result::set_matmul_desc_attribute(
                self.multiply,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        }
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the library has copied what it still needs.
        unsafe {
            let _ = result::destroy_matmul_desc(self.multiply);
            for layout in [self.weight, self.x, self.y] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn data_type(dtype: Float) -> sys::cudaDataType_t {
    match dtype {
        Float::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Float::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Float::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

/// `x [n, k]` times `weight [out, k]` transposed, plus `bias [1, out]`, plus `residual [n, out]` (f32). `[n, out]`, f32
/// with a residual, in the type of `x` without.
pub(super) fn multiply(x: &Matrix, weight: &Matrix, extra: Extra<'_>) -> candle_core::Result<Matrix> {
    let to = if extra.residual.is_some() { Float::F32 } else { x.dtype };
    let fits = weight.columns == x.columns
        && weight.dtype == x.dtype
        && extra.bias.is_none_or(|b| b.columns == weight.rows && b.rows == 1 && b.dtype == to)
        && extra.residual.is_none_or(|r| r.shape() == (x.rows, weight.rows) && r.dtype == Float::F32);
    if !fits {
        let (bias, residual) = (extra.bias, extra.residual);
        bail!("linear: x {x:?}, weight {weight:?}, bias {bias:?}, residual {residual:?} do not fit");
    }
    let gpu: &Arc<Gpu> = &x.gpu;
    let mut y = Matrix::uninit(gpu, x.rows, weight.rows, to)?;
    if x.rows > 0 {
        gpu.multiplier.queue((x, 0), (weight, 0), extra, &mut y)?;
    }
    Ok(y)
}

/// The logits `[n, columns]` (f32) of rows `x_first ..` of `hidden` and rows `first ..` of a vocabulary head: as many of
/// each as `logits` has rows and columns.
pub(super) fn logits(
    hidden: (&Matrix, usize),
    weight: (&Matrix, usize),
    logits: &mut Matrix,
) -> Result<(), GpuError> {
    hidden.0.gpu.multiplier.queue(hidden, weight, Extra::default(), logits)
}
