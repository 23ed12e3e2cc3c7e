//! A GPU: its stream, its memory, and the kernels compiled for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError};
use cudarc::nvrtc::Ptx;

use super::error::GpuError;
use super::multiply::Multiplier;
use crate::weights::Float;

/// The modules, one a `.cu`, by its name.
static FATBINS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
/// The toolkit that made them.
const TOOLKIT: &str = env!("QRM_CUDA_TOOLKIT");
/// What a kernel gets of shared memory without asking for it.
const SHARED_UNASKED: usize = 48 << 10;

/// One device. Whatever is queued on it runs in order; it may be used from any thread.
pub struct Gpu {
    pub(super) stream: Arc<CudaStream>,
    pub(super) multiplier: Multiplier,
    modules: HashMap<&'static str, Arc<CudaModule>>,
    /// By symbol, each with the dynamic shared memory that it may have.
    functions: Mutex<HashMap<String, (CudaFunction, usize)>>,
    capability: (i32, i32),
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{}", self.ordinal())
    }
}

/// How many GPUs there are. Errors when they cannot be used at all: no driver, one that is too old, no cuBLASLt.
pub fn count() -> Result<usize, GpuError> {
    // SAFETY: looking for libraries by name runs none of their code but their initialisers.
    let (driver, blas) = unsafe { (sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()) };
    if !driver {
        return Err(GpuError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: it writes the one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let major = TOOLKIT.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if version / 1000 < major {
        let driver = format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(GpuError::DriverTooOld { driver, toolkit: TOOLKIT });
    }
    match CudaContext::device_count() {
        Ok(0) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Ok(_) if !blas => Err(GpuError::NoCublasLt),
        Ok(count) => Ok(count as usize),
        Err(error) => Err(error.into()),
    }
}

impl Gpu {
    /// Opens device `ordinal`, counted from 0, and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, GpuError> {
        let count = count()?;
        if ordinal >= count {
            return Err(GpuError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        let (major, minor) = context.compute_capability()?;
        if major < 8 {
            let name = context.name()?;
            return Err(GpuError::DeviceTooOld { ordinal, name, major, minor });
        }
        // SAFETY: all work is queued on the one stream made below, which keeps its order without events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        keep_memory(&context)?;
        let load = |(name, fatbin): &(&'static str, &[u8])| {
            Ok((*name, context.load_module(Ptx::from_binary(fatbin.to_vec()))?))
        };
        let modules = FATBINS.iter().map(load).collect::<Result<_, DriverError>>()?;
        let multiplier = Multiplier::new(stream.clone())?;
        Ok(Arc::new(Self {
            stream,
            multiplier,
            modules,
            functions: Mutex::default(),
            capability: (major, minor),
        }))
    }

    /// Its number, counted from 0.
    pub fn ordinal(&self) -> usize {
        self.stream.context().ordinal()
    }

    /// As the driver names it.
    pub fn name(&self) -> Result<String, GpuError> {
        Ok(self.stream.context().name()?)
    }

    /// Bytes that are free, and in all. What the process keeps without using it is free to it.
    pub fn memory(&self) -> Result<(usize, usize), GpuError> {
        let (free, total) = self.stream.context().mem_get_info()?;
        Ok((free + kept(self.stream.context())?, total))
    }

    /// `(9, 0)`: compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Waits until all that is queued is done.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        Ok(self.stream.synchronize()?)
    }

    /// Whether there is a kernel for compute capability 9.0 alone. Kernels that were compiled for older devices run on such a
    /// device too, but those are not among them.
    pub(super) fn has_wgmma(&self, name: &'static str, dtype: Float, shared: usize) -> bool {
        self.capability == (9, 0) && self.function(name, Some(dtype), shared).is_ok()
    }

    /// Kernel `name_dtype` of module `name`, allowed `shared` bytes of dynamic shared memory.
    pub(super) fn function(
        &self,
        name: &'static str,
        dtype: Option<Float>,
        shared: usize,
    ) -> Result<CudaFunction, GpuError> {
        let symbol = dtype.map_or_else(|| name.to_owned(), |dtype| format!("{name}_{}", dtype.suffix()));
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, allowed)) = functions.get(&symbol)
            && shared <= *allowed
        {
            return Ok(function.clone());
        }
        let missing = DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND);
        let function = self.modules.get(name).ok_or(missing)?.load_function(&symbol)?;
        if shared > SHARED_UNASKED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32)?;
        }
        functions.insert(symbol, (function.clone(), shared.max(SHARED_UNASKED)));
        Ok(function)
    }

    /// Memory that the next thing queued must fill: it holds whatever was there before.
    pub(super) fn uninit<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        // SAFETY: every caller queues a kernel or a multiply that writes all of it, before anything reads it.
        Ok(unsafe { self.stream.alloc(len.max(1)) }?)
    }

    /// A copy of `values` in device memory.
    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, GpuError> {
        match values.is_empty() {
            true => self.uninit(1),
            false => Ok(self.stream.clone_htod(values)?),
        }
    }
}

/// Lets freed memory stay with the process: batches ask for the same sizes again and again.
fn keep_memory(context: &Arc<CudaContext>) -> Result<(), DriverError> {
    let Some(pool) = pool(context)? else { return Ok(()) };
    let mut keep = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the value is the u64 that the attribute is.
    unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()).result() }
}

/// Bytes of freed memory that stayed.
fn kept(context: &Arc<CudaContext>) -> Result<usize, DriverError> {
    let Some(pool) = pool(context)? else { return Ok(0) };
    let bytes = |attribute| -> Result<usize, DriverError> {
        let mut bytes = 0u64;
        // SAFETY: the values are the u64 that both attributes are.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result()?;
        Ok(bytes as usize)
    };
    let reserved = bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    Ok(reserved.saturating_sub(bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?))
}

/// What allocations come from, on devices that have it.
fn pool(context: &Arc<CudaContext>) -> Result<Option<sys::CUmemoryPool>, DriverError> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    let mut pool = std::ptr::null_mut();
    // SAFETY: it writes the one pointer; the pool belongs to the device of a live context.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()) }.result()?;
    Ok(Some(pool))
}

/// Queues a kernel: `launch!(gpu, "name", dtype, grid, threads of a block, shared bytes; arguments)`, the grid of three.
macro_rules! launch {
    ($gpu:expr, $name:expr, $dtype:expr, $grid:expr, $block:expr, $shared:expr; $($arg:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg as _;
        let gpu: &$crate::cuda::Gpu = $gpu;
        let (shared, (x, y, z)): (usize, (usize, usize, usize)) = ($shared, $grid);
        let function = gpu.function($name, $dtype, shared)?;
        let mut builder = gpu.stream.launch_builder(&function);
        $(builder.arg($arg);)+
        let config = cudarc::driver::LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: ($block as u32, 1, 1),
            shared_mem_bytes: shared as u32,
        };
        // SAFETY: the arguments are those of the kernel's signature in the `.cu` of its name, and the matrices have the shapes that
        // its header names: the caller has checked them.
        unsafe { builder.launch(config) }.map_err($crate::cuda::GpuError::from)?;
    }};
}
pub(super) use launch;
