//! Batches before they are computed: what is wrong with them, and how they are laid out.

use super::{ModelError, RewardModel};
use crate::forest::Forest;
use crate::prefix_cache::Continuation;
use crate::trajectory::Trajectory;

/// A batch laid out: which rows of the forest the head reads, and for which tokens.
pub(crate) struct Plan {
    pub(crate) forest: Forest,
    pub(crate) rows: Vec<u32>,
    pub(super) targets: Vec<u32>,
}

impl RewardModel {
    /// Lays a batch out behind what it continues.
    pub(crate) fn plan(
        &self,
        batch: &[Trajectory],
        continued: &mut Continuation,
    ) -> Result<Plan, ModelError> {
        for (index, trajectory) in batch.iter().enumerate() {
            self.check(trajectory).map_err(|message| ModelError::Trajectory { index, message })?;
        }
        let forest = Forest::after(&continued.prefixes, batch);
        continued.lay_out(&forest);
        let lookback = self.head.lookback();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (i, trajectory) in batch.iter().enumerate() {
            let kept = forest.kept(i);
            let (first, end) = (trajectory.prompt_ids.len() - lookback, trajectory.len() - lookback);
            rows.extend_from_slice(&forest.rows(i)[first - kept..end - kept]);
            targets.extend_from_slice(&trajectory.response_ids);
        }
        Ok(Plan { forest, rows, targets })
    }

    fn check(&self, t: &Trajectory) -> Result<(), String> {
        if t.response_ids.is_empty() {
            return Err("the response is empty".into());
        }
        if t.prompt_ids.len() < self.head.lookback() {
            return Err("a vocabulary head needs a prompt of at least one token".into());
        }
        if t.len() > self.context_length() {
            return Err(format!("{} tokens, the context holds {}", t.len(), self.context_length()));
        }
        match t.prompt_ids.iter().chain(t.response_ids.iter()).find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(format!("token id {id}, the vocabulary ends at {}", self.vocab_size())),
            None => Ok(()),
        }
    }
}
