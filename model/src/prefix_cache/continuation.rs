//! What one batch takes from the cache, and the blocks that it leaves there once its layers have filled them.

use std::sync::Arc;

use candle_core::Result;
use qrm_kernels::{BLOCK, Layout, Rows, keys_and_values, prefix_attention};

use super::Key;
#[cfg(feature = "cuda")]
use super::pools;
use crate::forest::{Forest, Prefixes};

/// What a batch takes from a cache and what it has for it.
#[derive(Default)]
pub(crate) struct Continuation {
    /// Where the forest begins.
    pub(crate) prefixes: Prefixes,
    pub(super) kept: Vec<Arc<Block>>,
    pub(super) fresh: Vec<Fresh>,
    /// The keys of every prompt's blocks, first block first.
    pub(super) paths: Vec<Vec<Key>>,
    /// Layers that have been through.
    layer: usize,
    #[cfg(feature = "cuda")]
    pub(super) pools: Option<Arc<pools::Pools>>,
}

/// A block that the batch computes.
pub(super) struct Fresh {
    pub(super) key: Key,
    /// Where it lies: a trajectory, and its place among the blocks of the prompt.
    pub(super) trajectory: usize,
    pub(super) index: usize,
    /// In the packed batch.
    pub(super) rows: Vec<u32>,
    pub(super) block: Block,
}

/// Keys and values of [`BLOCK`] tokens.
pub(super) enum Block {
    /// Per layer, `[BLOCK, 2 · kv_heads · head_dim]`.
    Host(Vec<Vec<f32>>),
    /// On GPUs.
    #[cfg(feature = "cuda")]
    Gpu(pools::Slot),
}

impl Continuation {
    /// The slots of the blocks that the batch continues, and those of the blocks that it leaves, with their rows.
    #[cfg(feature = "cuda")]
    pub(crate) fn slots(&self) -> (Vec<usize>, Vec<(usize, Vec<u32>)>) {
        let kept = self.kept.iter().filter_map(|block| block.slot());
        let fresh = self.fresh.iter().filter_map(|f| Some((f.block.slot()?, f.rows.clone())));
        (kept.collect(), fresh.collect())
    }

    /// Tells it how the batch was laid out.
    pub(crate) fn lay_out(&mut self, forest: &Forest) {
        for of_one in self.fresh.chunk_by_mut(|a, b| a.trajectory == b.trajectory) {
            let Some(trajectory) = of_one.first().map(|fresh| fresh.trajectory) else { continue };
            let (rows, kept) = (forest.rows(trajectory), forest.kept(trajectory));
            for fresh in of_one {
                let first = fresh.index * BLOCK - kept;
                fresh.rows = rows[first..first + BLOCK].to_vec();
            }
        }
    }

    /// The next layer's attention, which sees the kept blocks; what is fresh is kept.
    pub(crate) fn attend(
        &mut self,
        qkv: &Rows,
        layout: &Layout,
        (q_heads, kv_heads): (usize, usize),
        window: Option<usize>,
    ) -> Result<Rows> {
        let layer = self.layer;
        self.layer += 1;
        #[cfg(feature = "cuda")]
        if let Rows::Cuda(_) = qkv {
            let heads = (q_heads, kv_heads);
            return match &self.pools {
                Some(pools) => pools.attend(layer, qkv, layout, heads, window),
                None => qkv.forest_attention(layout, heads, window),
            };
        }
        let qkv = qkv.tensor()?;
        let rows: Vec<&[u32]> = self.fresh.iter().map(|fresh| fresh.rows.as_slice()).collect();
        let blocks = keys_and_values(qkv, &rows, q_heads, kv_heads)?;
        for (fresh, layer) in self.fresh.iter_mut().zip(blocks) {
            match &mut fresh.block {
                Block::Host(layers) => layers.push(layer),
                #[cfg(feature = "cuda")]
                Block::Gpu(_) => {}
            }
        }
        let kept: Vec<&[f32]> =
            self.kept.iter().filter_map(|block| Some(block.host()?.get(layer)?.as_slice())).collect();
        prefix_attention(qkv, &layout.segments, &kept, q_heads, kv_heads, window).map(Rows::from)
    }
}

impl Block {
    /// Of a block that is on the host.
    fn host(&self) -> Option<&[Vec<f32>]> {
        match self {
            Self::Host(layers) => Some(layers),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => None,
        }
    }

    /// Of a block that is on GPUs.
    #[cfg(feature = "cuda")]
    fn slot(&self) -> Option<usize> {
        match self {
            Self::Host(_) => None,
            Self::Gpu(slot) => Some(slot.index),
        }
    }
}
