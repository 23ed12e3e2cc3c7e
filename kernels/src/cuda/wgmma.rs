//! The launch of `token_reward_wgmma.cu`: matrices as TMA sees them, and blocks in clusters.

use cudarc::driver::sys::{self, CUlaunchAttribute, CUlaunchAttributeValue, CUlaunchConfig, CUtensorMap};
use cudarc::driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut};

use super::error::GpuError;
use super::gpu::Gpu;
use super::matrix::Matrix;
use super::token_reward::RowState;
use crate::weights::Float;

const NAME: &str = "token_reward_wgmma";
const THREADS: u32 = 384;
/// `Shared` of the kernel, four stages of 128 + 256 rows of 64 and their barriers, from an address that is a multiple of
/// 1024 on.
const SHARED: usize = 4 * (128 + 256) * 64 * 2 + 1024 + 1024;
/// Columns and rows of a box that TMA copies: 128 bytes a row, as the swizzle has it.
const BOX: [u32; 2] = [64, 128];

/// Whether a device has the kernel.
pub(super) fn is_there(gpu: &Gpu, dtype: Float) -> bool {
    gpu.has_wgmma(NAME, dtype, SHARED)
}

/// Queues the kernel for `hidden [n, d]` and `weight [V, d]` of the same 16-bit type, `targets [n]`, `partials [splits, n]`.
/// `grid.0` is a multiple of `cluster`.
pub(super) fn wgmma(
    hidden: &Matrix,
    weight: &Matrix,
    targets: &CudaView<'_, u32>,
    partials: &mut CudaSlice<RowState>,
    grid: (usize, usize, usize),
    cluster: usize,
) -> Result<(), GpuError> {
    let gpu = &hidden.gpu;
    let function = gpu.function(NAME, Some(hidden.dtype), SHARED)?;
    let maps = [tensor_map(hidden)?, tensor_map(weight)?];
    let (targets, _targets) = targets.device_ptr(&gpu.stream);
    let (partials, _partials) = partials.device_ptr_mut(&gpu.stream);
    let numbers = [hidden.rows as i32, weight.rows as i32, hidden.columns as i32];
    let mut arguments = [
        (&raw const maps[0]).cast_mut().cast(),
        (&raw const maps[1]).cast_mut().cast(),
        (&raw const targets).cast_mut().cast(),
        (&raw const partials).cast_mut().cast(),
        (&raw const numbers[0]).cast_mut().cast(),
        (&raw const numbers[1]).cast_mut().cast(),
        (&raw const numbers[2]).cast_mut().cast(),
    ];
    let dimension = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster as u32, y: 1, z: 1 };
    let mut attribute = CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { clusterDim: dimension },
    };
    let config = CUlaunchConfig {
        gridDimX: grid.0 as u32,
        gridDimY: grid.1 as u32,
        gridDimZ: grid.2 as u32,
        blockDimX: THREADS,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: SHARED as u32,
        hStream: gpu.stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    gpu.stream.context().bind_to_thread()?;
    // SAFETY: the arguments are those of the kernel's signature, alive until the driver has copied them; the matrices have
    // the shapes that they say.
    unsafe {
        let nothing = std::ptr::null_mut();
        sys::cuLaunchKernelEx(&raw const config, function.cu_function(), arguments.as_mut_ptr(), nothing)
            .result()?;
    }
    Ok(())
}

/// What TMA knows of a matrix: the driver's opaque description, at the alignment that the newest header gives it.
#[repr(C, align(128))]
struct Map(CUtensorMap);

fn tensor_map(matrix: &Matrix) -> Result<Map, GpuError> {
    let gpu = &matrix.gpu;
    let dtype = match matrix.dtype {
        Float::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let (address, _order) = matrix.data.device_ptr(&gpu.stream);
    let dims = [matrix.columns as u64, matrix.rows as u64];
    let strides = [(matrix.columns * matrix.dtype.size()) as u64];
    let mut map = Map(CUtensorMap { opaque: [0; 16] });
    gpu.stream.context().bind_to_thread()?;
    // SAFETY: the address and the sizes are those of a live matrix; the arrays have one entry a dimension, the strides
    // one less. The driver copies them.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            dtype,
            2,
            address as *mut _,
            dims.as_ptr(),
            strides.as_ptr(),
            BOX.as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()?;
    }
    Ok(map)
}
