//! Which examples a step sees, and how they are cut into micro-batches.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::data::Example;

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

/// Examples in order, cut so that a micro-batch holds at most `tokens` tokens, or one example.
pub fn micro_batches<'a>(examples: &[&'a Example], tokens: usize) -> Vec<Vec<&'a Example>> {
    let mut batches: Vec<Vec<&Example>> = Vec::new();
    let mut held = usize::MAX;
    for example in examples {
        match batches.last_mut() {
            Some(batch) if held + example.tokens() <= tokens => batch.push(example),
            _ => {
                batches.push(vec![example]);
                held = 0;
            }
        }
        held += example.tokens();
    }
    batches
}
