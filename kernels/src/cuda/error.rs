//! Why a GPU cannot be used.

/// What keeps a GPU from being used, in words for whoever started the program.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No NVIDIA driver on this machine.
    #[error("no NVIDIA driver: libcuda.so is not there")]
    NoDriver,
    /// The driver cannot run what this binary carries.
    #[error(
        "the NVIDIA driver is too old: it speaks CUDA {driver}, this binary was built with CUDA {toolkit}"
    )]
    DriverTooOld {
        /// The newest CUDA that the driver knows.
        driver: String,
        /// The toolkit of the build.
        toolkit: &'static str,
    },
    /// The multiply's library is missing.
    #[error(
        "libcublasLt.so is not there: install the CUDA runtime libraries, or add their folder to LD_LIBRARY_PATH"
    )]
    NoCublasLt,
    /// There is no such device.
    #[error("no GPU {ordinal}: this machine has {count}")]
    NoSuchDevice {
        /// Asked for.
        ordinal: usize,
        /// There are.
        count: usize,
    },
    /// The device is older than the kernels.
    #[error("GPU {ordinal} ({name}) has compute capability {major}.{minor}, at least 8.0 is needed")]
    DeviceTooOld {
        /// Asked for.
        ordinal: usize,
        /// The device's own name.
        name: String,
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
    /// What the driver says.
    #[error("the NVIDIA driver: {0}")]
    Driver(#[from] cudarc::driver::DriverError),
    /// What cuBLASLt says.
    #[error("cuBLASLt: {0}")]
    Cublas(#[from] cudarc::cublaslt::result::CublasError),
}

impl From<GpuError> for candle_core::Error {
    fn from(error: GpuError) -> Self {
        Self::wrap(error)
    }
}
