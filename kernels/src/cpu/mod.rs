//! What the CPU faces of the ops share.

pub(crate) mod isa;
pub(crate) mod math;
pub(crate) mod output;
pub(crate) mod tile;

use candle_core::{CpuStorage, Layout, Result, bail};

/// The f32 data of a contiguous operand.
pub(crate) fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("{op}: f32 expected, got {:?}", storage.dtype()) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("{op}: a contiguous tensor expected, got {layout:?}"),
    }
}

use candle_core::backend::BackendStorage;
