//! A model that learns: its forward passes, its gradients, its optimiser.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Tensor;
use qrm_model::checkpoint::CheckpointError;
use qrm_model::reward::{HeadKind, TokenScores};
use qrm_model::training::{Gradients, Method};
use qrm_model::{RewardModel, Trajectory};
use qrm_trainer::batches::within;
use qrm_trainer::evaluate::score_all;
use qrm_trainer::export::{self, Card, Store};
use qrm_trainer::optimizer::{AdamW, Settings, plain};
use qrm_trainer::state::{Position, States};
use serde_json::Value;

/// A policy (vocabulary head) or a critic (scalar head).
pub struct Learner {
    /// Its weights change with every update.
    pub model: RewardModel,
    optimizer: AdamW,
    base: PathBuf,
    /// Tokens of one forward and backward.
    budget: usize,
}

impl Learner {
    /// A policy: a checkpoint with a vocabulary head.
    pub fn policy(dir: &Path, settings: Settings, budget: usize) -> anyhow::Result<Self> {
        let model = RewardModel::load_for_training(dir, HeadKind::QVocab, &Method::Full, 0);
        Self::new(model, dir, settings, budget)
    }

    /// A critic: the decoder of any checkpoint, under a head that `seed` makes.
    pub fn critic(dir: &Path, seed: u64, settings: Settings, budget: usize) -> anyhow::Result<Self> {
        Self::new(RewardModel::load_critic(dir, seed), dir, settings, budget)
    }

    fn new(
        model: Result<RewardModel, CheckpointError>,
        base: &Path,
        settings: Settings,
        budget: usize,
    ) -> anyhow::Result<Self> {
        let model = model.with_context(|| format!("the checkpoint {} cannot be trained", base.display()))?;
        let optimizer = AdamW::new(settings, model.trained());
        Ok(Self { model, optimizer, base: base.to_owned(), budget })
    }

    /// `log π(a_t|s_t)` of every response token, `[T]` each.
    pub fn log_probs(&self, trajectories: &[Trajectory]) -> anyhow::Result<Vec<Vec<f32>>> {
        log_probs(&self.model, trajectories, self.budget)
    }

    /// A critic's `V(s_t)`, `[T]` each.
    pub fn values(&self, trajectories: &[Trajectory]) -> anyhow::Result<Vec<Vec<f32>>> {
        let states: Vec<Trajectory> = trajectories.iter().map(states).collect();
        Ok(score_all(&self.model, &states, self.budget)?.into_iter().map(|s| s.logit).collect())
    }

    /// One update. `loss` is the share that some of the trajectories (by their places) have in the step's loss, of the head's
    /// outputs for their response tokens. Gives the gradient's norm.
    pub fn update(
        &mut self,
        trajectories: &[Trajectory],
        lr: f64,
        mut loss: impl FnMut(Range<usize>, &Tensor) -> candle_core::Result<Tensor>,
    ) -> anyhow::Result<f64> {
        let mut gradients = Gradients::new(self.model.trained());
        for places in within(trajectories.iter().map(Trajectory::len), self.budget) {
            let batch = &trajectories[places.clone()];
            let value = self.model.train(batch, false, &mut gradients, |outputs| loss(places, outputs))?;
            anyhow::ensure!(value.is_finite(), "the loss is {value}");
        }
        let gradients = plain(self.model.trained(), &gradients)?;
        Ok(self.optimizer.step(self.model.trained(), &gradients, lr)?)
    }

    /// Saves what a killed run goes on from.
    pub fn save_state(&self, states: &States, position: &Position) -> anyhow::Result<()> {
        states.save(&self.model, &self.optimizer, position).map(drop)
    }

    /// Puts back what a run with these settings saved at a step, or the newest; `updates` is how many there are in a step.
    pub fn resume(
        &mut self,
        states: &States,
        settings: &Value,
        step: Option<usize>,
        updates: usize,
    ) -> anyhow::Result<Option<Position>> {
        let position = match step {
            Some(step) => Some(states.resume_at(step, settings, &self.model, &mut self.optimizer)?),
            None => states.resume(settings, &self.model, &mut self.optimizer)?,
        };
        if let Some(position) = &position {
            self.optimizer.step = position.step * updates;
        }
        Ok(position)
    }

    /// Writes it in Hugging Face layout.
    pub fn save(&self, to: &Path) -> anyhow::Result<()> {
        let card =
            Card { is_reward_model: false, step_separator: "\n".into(), beta_gamma: None, evaluation: None };
        export::write(&self.model, &Method::Full, &self.base, to, Store::F32, &card)
    }
}

/// `log π` of a model that does not learn.
pub fn log_probs(
    model: &RewardModel,
    trajectories: &[Trajectory],
    budget: usize,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let minus = |s: TokenScores| s.logit.iter().zip(&s.logsumexp).map(|(z, l)| (z - l).min(0.0)).collect();
    Ok(score_all(model, trajectories, budget)?.into_iter().map(minus).collect())
}

/// A scalar head reads at a token's own position: shifted by one it reads the state before each response token.
pub fn states(trajectory: &Trajectory) -> Trajectory {
    let (prompt, response) = (&trajectory.prompt_ids, &trajectory.response_ids);
    let Some((last, before)) = prompt.split_last() else { return trajectory.clone() };
    let read = std::iter::once(*last).chain(response.iter().copied()).take(response.len());
    Trajectory { prompt_ids: before.into(), response_ids: read.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_critic_reads_states_before_tokens() {
        let of = |p: &[u32], r: &[u32]| Trajectory { prompt_ids: p.into(), response_ids: r.into() };
        assert_eq!(states(&of(&[1, 2, 3], &[4, 5])), of(&[1, 2], &[3, 4]));
        assert_eq!(states(&of(&[1], &[4])), of(&[], &[1]));
    }
}
