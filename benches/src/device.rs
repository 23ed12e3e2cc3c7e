//! Where a checkpoint is computed.

use qrm_kernels::{Device, Weights};

/// `cpu`, or `cuda:0` with the feature `cuda`.
pub(crate) fn open(name: &str, weights: Weights) -> anyhow::Result<Device> {
    if name == "cpu" {
        return Ok(Device::cpu(weights));
    }
    gpu(name, weights)
}

#[cfg(feature = "cuda")]
fn gpu(name: &str, weights: Weights) -> anyhow::Result<Device> {
    use anyhow::Context;

    let ordinal = name.strip_prefix("cuda:").context("a device is cpu or cuda:0")?.parse()?;
    Ok(Device::Cuda(qrm_kernels::cuda::Gpu::open(ordinal)?, weights.on_gpu()))
}

#[cfg(not(feature = "cuda"))]
fn gpu(name: &str, _: Weights) -> anyhow::Result<Device> {
    anyhow::bail!("{name}: these benches were built without the feature `cuda`, and compute on the CPU alone")
}
