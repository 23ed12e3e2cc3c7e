//! Keys and values of prompts, kept between batches: what a later prompt begins with alike is not computed again.
//!
//! Prompts are cut into blocks of [`BLOCK`] tokens. A block's key is a hash of its tokens and of all before them, so that
//! equal blocks after different beginnings are different blocks. Memory is bounded; what was used least recently goes
//! first, a block never before those that continue it, and none while a batch reads it. Blocks of a model on GPUs stay
//! there: see `pools`. What one batch takes and leaves is in `continuation`.

mod continuation;
#[cfg(feature = "cuda")]
mod pools;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use qrm_kernels::BLOCK;
use sha2::{Digest, Sha256};

pub(crate) use continuation::Continuation;

use crate::reward_model::RewardModel;
use crate::trajectory::Trajectory;
use continuation::{Block, Fresh};

/// Of a block: the SHA-256 of the key before it and its token ids. Nobody can make a prompt that hits another's block.
type Key = [u8; 32];

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
