//! Keys and values of prompts, kept between batches: what a later prompt begins with alike is not computed again.
//!
//! Prompts are cut into blocks of [`BLOCK`] tokens. A block's key is a hash of its tokens and of all before them, so that
//! equal blocks after different beginnings are different blocks. Memory is bounded; what was used least recently goes
//! first, a block never before those that continue it, and none while a batch reads it. Blocks of a model on GPUs stay
//! there: see `pools`.

#[cfg(feature = "cuda")]
mod pools;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use qrm_kernels::{BLOCK, Layout, Rows, keys_and_values, prefix_attention};
use sha2::{Digest, Sha256};

use crate::forest::{Forest, Prefixes};
use crate::reward_model::RewardModel;
use crate::trajectory::Trajectory;

/// Of a block: the SHA-256 of the key before it and its token ids. Nobody can make a prompt that hits another's block.
type Key = [u8; 32];

/// Keys and values of [`BLOCK`] tokens.
enum Block {
    /// Per layer, `[BLOCK, 2 · kv_heads · head_dim]`.
    Host(Vec<Vec<f32>>),
    /// On GPUs.
    #[cfg(feature = "cuda")]
    Gpu(pools::Slot),
}

/// The cache of one model's weights. Several threads may use it at once.
pub struct PrefixCache {
    /// In blocks.
    capacity: usize,
    block_bytes: usize,
    state: Mutex<State>,
    #[cfg(feature = "cuda")]
    pools: Option<Arc<pools::Pools>>,
}

/// What a cache holds and has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixCacheStats {
    /// Bytes of keys and values.
    pub bytes: usize,
    /// Tokens that batches took from it instead of computing them.
    pub hit_tokens: u64,
    /// Tokens dropped for newer ones.
    pub evicted_tokens: u64,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Oldest first. A block is older than the one it continues.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    hit_tokens: u64,
    evicted_tokens: u64,
}

struct Entry {
    used: u64,
    block: Arc<Block>,
}

/// What a batch takes from a cache and what it has for it.
#[derive(Default)]
pub(crate) struct Continuation {
    /// Where the forest begins.
    pub(crate) prefixes: Prefixes,
    kept: Vec<Arc<Block>>,
    fresh: Vec<Fresh>,
    /// The keys of every prompt's blocks, first block first.
    paths: Vec<Vec<Key>>,
    /// Layers that have been through.
    layer: usize,
    #[cfg(feature = "cuda")]
    pools: Option<Arc<pools::Pools>>,
}

/// A block that the batch computes.
struct Fresh {
    key: Key,
    /// Where it lies: a trajectory, and its place among the blocks of the prompt.
    trajectory: usize,
    index: usize,
    /// In the packed batch.
    rows: Vec<u32>,
    block: Block,
}

/// The keys of a prompt's whole blocks.
fn keys(prompt_ids: &[u32]) -> Vec<Key> {
    let (blocks, _) = prompt_ids.as_chunks::<BLOCK>();
    let mut before = Key::default();
    let key = |block: &[u32; BLOCK]| {
        let mut hash = Sha256::new_with_prefix(before);
        block.iter().for_each(|id| hash.update(id.to_le_bytes()));
        before = hash.finalize().into();
        before
    };
    blocks.iter().map(key).collect()
}

/// Names a whole prompt, alike on every machine: for those who send work to where its prompt is cached.
pub fn prompt_key(prompt_ids: &[u32]) -> u64 {
    let mut hash = Sha256::new();
    prompt_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

impl PrefixCache {
    /// Holds at most `bytes` of keys and values of `model`. Errors when a GPU does not have them.
    pub fn new(model: &RewardModel, bytes: usize) -> Result<Self> {
        let block_bytes = BLOCK * model.kv_bytes_per_token();
        let capacity = bytes / block_bytes.max(1);
        Ok(Self {
            capacity,
            block_bytes,
            state: Mutex::default(),
            #[cfg(feature = "cuda")]
            pools: pools::Pools::new(model, capacity)?,
        })
    }

    /// What it holds and has done.
    pub fn stats(&self) -> PrefixCacheStats {
        let state = self.state();
        PrefixCacheStats {
            bytes: state.entries.len() * self.block_bytes,
            hit_tokens: state.hit_tokens,
            evicted_tokens: state.evicted_tokens,
        }
    }

    /// Finds what the batch's prompts begin with. The last `lookback` tokens of a prompt are left to the batch: the head
    /// reads them.
    pub(crate) fn find(&self, batch: &[Trajectory], lookback: usize) -> Continuation {
        let mut found = Continuation::default();
        if self.capacity == 0 {
            return found;
        }
        let (mut kept, mut fresh): (HashMap<Key, usize>, HashSet<Key>) = Default::default();
        let mut state = self.state();
        #[cfg(feature = "cuda")]
        found.pools.clone_from(&self.pools);
        for (trajectory, t) in batch.iter().enumerate() {
            let prompt_ids = &t.prompt_ids[..t.prompt_ids.len().saturating_sub(lookback)];
            let path = keys(prompt_ids);
            let mut end = None;
            for (index, key) in path.iter().enumerate() {
                match state.entries.get(key) {
                    // A block whose beginning is gone is of no use.
                    Some(entry) if index == end.map_or(0, |(_, blocks)| blocks) => {
                        let slot = *kept.entry(*key).or_insert_with(|| {
                            found.prefixes.parents.push(end.map(|(last, _)| last));
                            found.kept.push(entry.block.clone());
                            found.kept.len() - 1
                        });
                        end = Some((slot, index + 1));
                    }
                    _ => {
                        if fresh.insert(*key) {
                            let (rows, block) = (Vec::new(), Block::Host(Vec::new()));
                            found.fresh.push(Fresh { key: *key, trajectory, index, rows, block });
                        }
                    }
                }
            }
            found.prefixes.ends.push(end);
            found.paths.push(path);
        }
        // They are held until the batch is done; no more of them than could stay. The beginnings come first.
        found.fresh.truncate(self.capacity);
        state.hit_tokens += (found.kept.len() * BLOCK) as u64;
        #[cfg(feature = "cuda")]
        if let Some(pools) = &self.pools {
            // A GPU writes them while the batch is computed: their places must be there before.
            state.shrink(self.capacity.saturating_sub(found.fresh.len()));
            let slots: Vec<_> = found.fresh.iter().map_while(|_| pools.take()).collect();
            found.fresh.truncate(slots.len());
            found.fresh.iter_mut().zip(slots).for_each(|(fresh, slot)| fresh.block = Block::Gpu(slot));
        }
        found
    }

    /// Keeps what the batch has computed.
    pub(crate) fn keep(&self, batch: Continuation) {
        let mut state = self.state();
        for Fresh { key, block, .. } in batch.fresh {
            state.entries.entry(key).or_insert_with(|| Entry { used: 0, block: Arc::new(block) });
        }
        batch.paths.iter().for_each(|path| state.touch(path));
        drop(batch.kept); // what only this batch has read may go now
        state.shrink(self.capacity);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The last block first, so that it is older than what it continues.
    fn touch(&mut self, path: &[Key]) {
        for key in path.iter().rev() {
            if let Some(entry) = self.entries.get_mut(key) {
                self.by_use.remove(&entry.used);
                self.clock += 1;
                entry.used = self.clock;
                self.by_use.insert(self.clock, *key);
            }
        }
    }

    fn shrink(&mut self, capacity: usize) {
        let excess = self.entries.len().saturating_sub(capacity);
        let is_free = |key: &Key| self.entries.get(key).is_none_or(|e| Arc::strong_count(&e.block) == 1);
        let old: Vec<(u64, Key)> = self
            .by_use
            .iter()
            .filter(|(_, key)| is_free(key))
            .map(|(used, key)| (*used, *key))
            .take(excess)
            .collect();
        self.evicted_tokens += (old.len() * BLOCK) as u64;
        for (used, key) in old {
            self.by_use.remove(&used);
            self.entries.remove(&key);
        }
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
