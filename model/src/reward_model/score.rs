//! Scores of a batch: one forward, read by the head, and the rewards that are made of more than one token's scores.

use qrm_kernels::Rows;

use super::reference::Reference;
use super::{ModelError, Plan, RewardModel};
use crate::prefix_cache::{Continuation, PrefixCache};
use crate::reward::TokenScores;
use crate::trajectory::Trajectory;

/// The scores of one batch, in the order of its trajectories.
#[derive(Debug, Clone)]
pub struct BatchScores {
    /// Per trajectory, `[T]` each.
    pub scores: Vec<TokenScores>,
    /// Per trajectory: tokens computed for it. What it shares counts for the first that has it, so the sum is the
    /// number of unique tokens the decoder ran.
    pub computed_tokens: Vec<usize>,
}

impl RewardModel {
    /// Scores a batch: lays out the forest, runs the decoder once, reads the head on response positions only.
    pub fn score(&self, batch: &[Trajectory]) -> Result<BatchScores, ModelError> {
        match self.decoder.parts() {
            1 => self.run(batch, Continuation::default()).map(|(scores, _)| scores),
            _ => self.pipelined(batch, None),
        }
    }

    /// The same, bit for bit, but what `cache` has of the prompts is not computed; it keeps what is. The cache is this
    /// model's own.
    pub fn score_cached(&self, batch: &[Trajectory], cache: &PrefixCache) -> Result<BatchScores, ModelError> {
        if self.decoder.parts() > 1 {
            return self.pipelined(batch, Some(cache));
        }
        let (scores, continued) = self.run(batch, cache.find(batch, self.head.lookback()))?;
        cache.keep(continued);
        Ok(scores)
    }

    fn run(
        &self,
        batch: &[Trajectory],
        mut continued: Continuation,
    ) -> Result<(BatchScores, Continuation), ModelError> {
        let plan = self.plan(batch, &mut continued)?;
        let hidden = match plan.forest.is_empty() {
            true => None,
            false => Some(self.decoder.forward(&plan.forest, &mut continued, &plan.rows)?),
        };
        let scores = self.read(batch, &plan, hidden, &mut continued)?;
        Ok((scores, continued))
    }

    /// What the head says of a batch's hidden states.
    pub(crate) fn read(
        &self,
        batch: &[Trajectory],
        plan: &Plan,
        hidden: Option<Rows>,
        continued: &mut Continuation,
    ) -> Result<BatchScores, ModelError> {
        let mut all = TokenScores::default();
        if let Some(hidden) = hidden {
            all = self.head.forward(&hidden, &plan.targets)?;
            all.own = self.own(&all, plan, continued, batch)?;
        }
        let mut scores = Vec::with_capacity(batch.len());
        let mut at = 0;
        for (index, trajectory) in batch.iter().enumerate() {
            let end = at + trajectory.response_ids.len();
            let part = all.slice(at..end);
            if !part.is_finite() {
                return Err(ModelError::NotFinite { index });
            }
            scores.push(part);
            at = end;
        }
        let computed_tokens = (0..batch.len()).map(|i| plan.forest.fresh(i)).collect();
        Ok(BatchScores { scores, computed_tokens })
    }

    /// The rewards that take more than a token's scores.
    fn own(
        &self,
        scores: &TokenScores,
        plan: &Plan,
        continued: &mut Continuation,
        batch: &[Trajectory],
    ) -> Result<Vec<f32>, ModelError> {
        if let Some(Reference { beta, policy }) = &self.reference {
            let hidden = policy.decoder.forward(&plan.forest, continued, &plan.rows)?;
            let other = policy.head.forward(&hidden, &plan.targets)?;
            // A clamp keeps what is not a number: only the policy's own scores are looked at later.
            let log_p = |z: &f32, l: &f32| (z - l).clamp(f32::NEG_INFINITY, 0.0);
            let ratio = |((z, l), (other_z, other_l)): ((&f32, &f32), (&f32, &f32))| {
                beta * (log_p(z, l) - log_p(other_z, other_l))
            };
            let policy = scores.logit.iter().zip(&scores.logsumexp);
            return Ok(policy.zip(other.logit.iter().zip(&other.logsumexp)).map(ratio).collect());
        }
        let Some(steps) = &self.steps else { return Ok(Vec::new()) };
        let mut own = Vec::with_capacity(plan.targets.len());
        for trajectory in batch {
            let part = own.len()..own.len() + trajectory.response_ids.len();
            own.extend(steps.rewards(&self.text, &trajectory.response_ids, &scores.logit[part]));
        }
        Ok(own)
    }
}
