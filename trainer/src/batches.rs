//! Which examples a step sees, and what goes through a model together.

use std::ops::Range;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// The order of all steps. It depends on the seed and the step alone, so a run that goes on from a step needs no
/// other state.
#[derive(Debug, Clone)]
pub struct Order {
    examples: usize,
    batch: usize,
    seed: u64,
    /// The epoch last asked for, and its order.
    epoch: Option<(usize, Vec<usize>)>,
}

impl Order {
    /// Batches of `batch` of `examples` examples; the last one of an epoch is left out when it is not full.
    pub fn new(examples: usize, batch: usize, seed: u64) -> Self {
        Self { examples, batch: batch.clamp(1, examples.max(1)), seed, epoch: None }
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples / self.batch
    }

    /// The examples of a step, counted from 0 over all epochs.
    pub fn step(&mut self, step: usize) -> &[usize] {
        let per_epoch = self.steps_per_epoch().max(1);
        let (epoch, at) = (step / per_epoch, step % per_epoch);
        let current = self.epoch.take().filter(|(e, _)| *e == epoch);
        let (_, order) = self.epoch.insert(current.unwrap_or_else(|| {
            let mut order: Vec<usize> = (0..self.examples).collect();
            let seed = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(epoch as u64);
            order.shuffle(&mut StdRng::seed_from_u64(seed));
            (epoch, order)
        }));
        &order[at * self.batch..((at + 1) * self.batch).min(order.len())]
    }
}

/// Places in order, as many together as have at most `budget` tokens, or one; `lengths` are the tokens of each.
pub fn within(lengths: impl Iterator<Item = usize>, budget: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (i, length) in lengths.enumerate() {
        match batches.last_mut() {
            Some(batch) if held + length <= budget => batch.end = i + 1,
            _ => {
                batches.push(i..i + 1);
                held = 0;
            }
        }
        held += length;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_their_budget() {
        assert_eq!(within([3, 3, 9, 1, 2].into_iter(), 6), [0..2, 2..3, 3..5]);
        assert!(within(std::iter::empty(), 6).is_empty());
    }
}
