//! What the CPU faces of the ops share.
//!
//! - [`isa`]: which instruction set runs. [`tile`]: the inner tile of a multiply in it; [`integer`] in integers.
//! - [`storage`]: a weight's panels as they are held. [`multiplier`]: rows times panels, tile by tile, whatever they are held in.
//! - [`product`]: the whole multiply on all threads. [`output`]: what its tasks write.
//! - `math`: `exp`.

pub(crate) mod integer;
pub(crate) mod isa;
pub(crate) mod math;
pub(crate) mod multiplier;
pub(crate) mod output;
pub(crate) mod product;
pub(crate) mod storage;
pub(crate) mod tile;

use std::ops::{Deref, Range};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// The f32 data of a contiguous operand.
pub(crate) fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("{op}: f32 expected, got {:?}", storage.dtype()) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("{op}: a contiguous tensor expected, got {layout:?}"),
    }
}

/// The same of one that is changed where it is.
pub(crate) fn f32_slice_mut<'a>(
    op: &str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("{op}: f32 expected, got {:?}", storage.dtype()) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => bail!("{op}: a contiguous tensor expected, got {layout:?}"),
    }
}

/// The f32 data of a contiguous CPU tensor, locked for reading while this lives: what a backward works on.
pub(crate) fn values<'a>(op: &str, tensor: &'a Tensor) -> Result<impl Deref<Target = [f32]> + use<'a>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Values { storage, range: start..end }),
        _ => bail!("{op}: a contiguous f32 CPU tensor expected, got {tensor:?}"),
    }
}

struct Values<Guard> {
    storage: Guard,
    range: Range<usize>,
}

impl<Guard: Deref<Target = Storage>> Deref for Values<Guard> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => &[], // `values` lets nothing else through
        }
    }
}

/// A gradient in the shape of what it belongs to.
pub(crate) fn gradient(values: Vec<f32>, shape: &Shape) -> Result<Option<Tensor>> {
    Tensor::from_vec(values, shape, &Device::Cpu).map(Some)
}
