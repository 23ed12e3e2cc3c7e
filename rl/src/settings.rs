//! Everything a run is made of.

use std::path::PathBuf;

use clap::ValueEnum;
use qrm_model::reward::Normalize;
use qrm_trainer::optimizer::{Decay, Schedule, Settings as Adam};
use serde_json::{Value, json};

use crate::rollout::Sampler;
use crate::signal::Kl;

/// How a policy learns from rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Every token by its reward (Q-RM, DPO-RM) or return.
    Reinforce,
    /// Against the other answers of the group.
    Grpo,
    /// With a critic and a clipped ratio.
    Ppo,
}

/// What a token is credited with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Credit {
    /// As the released Q-RM code has it: `immediate` for `advantage`, `logit` and `centered_logit`, and in REINFORCE for
    /// `dpo`; else `return`.
    Auto,
    /// Its own reward, which is an advantage up to scale.
    Immediate,
    /// What comes from it on.
    Return,
}

impl Credit {
    /// Whether a token is credited with its own reward.
    pub fn is_immediate(self, algorithm: Algorithm, reward: &str) -> bool {
        match (self, reward) {
            (Self::Immediate, _) | (Self::Auto, "advantage" | "logit" | "centered_logit") => true,
            (Self::Auto, "dpo") => algorithm == Algorithm::Reinforce,
            (Self::Auto | Self::Return, _) => false,
        }
    }
}

/// What is taken from a token's reward before it is scaled. It depends on the state alone, so that the expected gradient
/// stays what it was and only its variance changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Baseline {
    /// Nothing, as in the paper.
    None,
    /// Of `advantage`: what log φ is on average where φ itself chooses, −H(φ(·|s_t)). A choice between equals (how to say
    /// it) is then worth nothing, and a wrong number all it costs.
    Entropy,
}

/// Everything a run is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How it learns.
    pub algorithm: Algorithm,
    /// Where the critic starts, but for its head: the reward model, or the policy.
    pub critic: Option<PathBuf>,
    /// Directory of all that the run writes.
    pub output: PathBuf,
    /// Steps.
    pub steps: usize,
    /// Questions of a step.
    pub prompts: usize,
    /// Decides every random choice.
    pub seed: u64,
    /// Where its questions come from, in words: a run goes on only with the same.
    pub questions: String,
    /// Where those are from that choose the best policy, in words.
    pub validation: String,
    /// Version of the policy it started from, which is also the reference of the KL penalty.
    pub started: String,
    /// What judges, in words: a run goes on only under the same.
    pub judge: String,
    /// Scaling of the rewards.
    pub normalize: Normalize,
    /// What a token is credited with.
    pub credit: Credit,
    /// An end of sequence has the mean of its trajectory's rewards.
    pub end_by_mean: bool,
    /// Weight of the KL penalty.
    pub kl_coef: f64,
    /// Its estimate.
    pub kl: Kl,
    /// ε of the clipped ratio.
    pub clip: f64,
    /// ε of the critic's; 0 = it moves freely.
    pub value_clip: f64,
    /// Weight of the policy's entropy in the loss.
    pub entropy_coef: f64,
    /// γ of returns and GAE.
    pub gamma: f64,
    /// λ of GAE.
    pub lambda: f64,
    /// GAE's advantages are standardised over the rollout.
    pub whiten: bool,
    /// c_V: weight of the critic beside rewards that are advantages.
    pub critic_weight: f64,
    /// Passes over a step's answers.
    pub epochs: usize,
    /// Updates of a pass.
    pub minibatches: usize,
    /// Highest learning rates of policy and critic.
    pub lr: (f64, f64),
    /// Steps in which they rise to it.
    pub warmup: usize,
    /// What comes then.
    pub decay: Decay,
    /// AdamW.
    pub optimizer: Adam,
    /// Tokens of one forward and backward.
    pub micro_batch_tokens: usize,
    /// Steps between evaluations.
    pub eval_every: usize,
    /// Sampled answers to each question of an evaluation, beside the greedy one; 0 = none.
    pub eval_samples: usize,
    /// The finished policy is that of the best evaluation instead of the last step's: a reward model that is being played
    /// shows in a Pass@1 that falls.
    pub keep_best: bool,
    /// Steps between saved states; 0 = none.
    pub save_every: usize,
    /// Go on from the newest saved state.
    pub resume: bool,
    /// Go on from it under another version of the reward model too.
    pub new_reward_model: bool,
}

impl Settings {
    /// What has to be the same for a run to go on: everything but how long it is, where the rates do not depend on it, and how
    /// closely it is watched, where that does not choose the policy that is kept.
    pub(crate) fn decisive(&self, sampler: &Sampler) -> Value {
        let steps = if self.decay == Decay::Constant { 0 } else { self.steps };
        let (output, save_every, resume, new_reward_model) = (PathBuf::new(), 0, false, false);
        let mut same = Self { output, steps, save_every, resume, new_reward_model, ..self.clone() };
        if !self.keep_best {
            (same.eval_every, same.eval_samples, same.validation) = (0, 0, String::new());
        }
        json!(format!("{same:?} {sampler:?}"))
    }

    /// Updates of a step that has so many answers.
    pub(crate) fn updates(&self, answers: usize) -> usize {
        self.epochs.max(1) * answers.div_ceil(answers.div_ceil(self.minibatches.max(1)).max(1))
    }

    /// Learning rates of policy and critic in a step, counted from 1.
    pub(crate) fn lr_at(&self, step: usize) -> (f64, f64) {
        let of = |peak| {
            let schedule = Schedule { peak, warmup: self.warmup, steps: self.steps, decay: self.decay };
            schedule.at(step.saturating_sub(1))
        };
        (of(self.lr.0), of(self.lr.1))
    }
}
