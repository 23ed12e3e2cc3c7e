//! Blocks that are kept on GPUs: one pool a layer, where that layer computes, and slots that are the same in all of them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use qrm_kernels::{Device, Layout, Rows, cuda};

use crate::reward_model::RewardModel;

/// The pools of one model.
pub(super) struct Pools {
    layers: Vec<Mutex<cuda::Pool>>,
    free: Mutex<Vec<usize>>,
}

/// A place for one block in every pool. It is free again when this is dropped: what the device reads of it was queued
/// before, what is written to it will be queued after.
pub(super) struct Slot {
    pub(super) index: usize,
    pools: Arc<Pools>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pools.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl Pools {
    /// Pools of `slots` slots for a model on GPUs; none for one that is not.
    pub(super) fn new(model: &RewardModel, slots: usize) -> Result<Option<Arc<Self>>> {
        let pool = |(device, width): (Device, usize)| match device {
            Device::Cpu(..) => Ok(None),
            Device::Cuda(gpu, weights) => {
                cuda::pool(&gpu, slots, width, weights.dtype).map(|pool| Some(Mutex::new(pool)))
            }
        };
        let layers: Option<Vec<_>> = model.kv_layers().into_iter().map(pool).collect::<Result<_>>()?;
        let free = Mutex::new((0..slots).rev().collect());
        Ok(layers.filter(|_| slots > 0).map(|layers| Arc::new(Self { layers, free })))
    }

    /// A slot that nobody has.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Slot { index, pools: self.clone() })
    }

    /// A layer's attention, which reads its pool and then has the batch's fresh blocks in it.
    pub(super) fn attend(
        &self,
        layer: usize,
        qkv: &Rows,
        layout: &Layout,
        heads: (usize, usize),
        window: Option<usize>,
    ) -> Result<Rows> {
        let Some(pool) = self.layers.get(layer) else { candle_core::bail!("no pool for layer {layer}") };
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        qkv.pool_attention(layout, &mut pool, heads, window)
    }
}
