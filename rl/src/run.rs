//! The loop: sample, have it judged, learn.

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use qrm_model::reward::HeadKind;
use qrm_model::{RewardModel, Trajectory};
use qrm_trainer::optimizer::Settings as Adam;
use qrm_trainer::report::Report;
use qrm_trainer::state::{Position, States};
use serde_json::{Value, json};

use crate::evaluate::pass_at_1;
use crate::learner::{Learner, log_probs};
use crate::objective::{Outcome, clipped, kl, reinforce, value};
use crate::rollout::{Judge, Rollout, Sampler};
use crate::signal::{
    Kl, Normalize, end_by_mean, gae, group_advantages, moments, normalize, q_advantages, returns,
};
use crate::task::{Question, Source};

/// How a policy learns from rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Every token by its reward (Q-RM) or return.
    Reinforce,
    /// Against the other answers of the group.
    Grpo,
    /// With a critic and a clipped ratio.
    Ppo,
}

/// What a token is credited with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Credit {
    /// `immediate` for rewards that are advantages up to scale (`advantage`, `logit`, `centered_logit`), else `return`.
    Auto,
    /// Its own reward.
    Immediate,
    /// What comes from it on.
    Return,
}

/// Everything a run is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How it learns.
    pub algorithm: Algorithm,
    /// Where the critic starts: the reward model, or the policy.
    pub critic: Option<PathBuf>,
    /// Directory of all that the run writes.
    pub output: PathBuf,
    /// Steps.
    pub steps: usize,
    /// Questions of a step.
    pub prompts: usize,
    /// Decides every random choice.
    pub seed: u64,
    /// Scaling of the rewards.
    pub normalize: Normalize,
    /// What a token is credited with.
    pub credit: Credit,
    /// An end of sequence has the mean of the others' rewards.
    pub end_by_mean: bool,
    /// Weight of the KL penalty.
    pub kl_coef: f64,
    /// Its estimate.
    pub kl: Kl,
    /// ε of the clipped ratio, and of the critic's.
    pub clip: f64,
    /// γ of returns and GAE.
    pub gamma: f64,
    /// λ of GAE.
    pub lambda: f64,
    /// c_V: weight of the critic beside rewards that are advantages.
    pub critic_weight: f64,
    /// Passes over a step's answers.
    pub epochs: usize,
    /// Updates of a pass.
    pub minibatches: usize,
    /// Learning rates of policy and critic.
    pub lr: (f64, f64),
    /// AdamW.
    pub optimizer: Adam,
    /// Tokens of one forward and backward.
    pub micro_batch_tokens: usize,
    /// Steps between evaluations.
    pub eval_every: usize,
    /// Steps between saved states; 0 = none.
    pub save_every: usize,
    /// Go on from the newest saved state.
    pub resume: bool,
}

impl Settings {
    /// What has to be the same for a run to go on: everything but how long and how closely it is watched.
    fn decisive(&self, sampler: &Sampler) -> Value {
        let (output, steps, eval_every, save_every, resume) = (PathBuf::new(), 0, 0, 0, false);
        let same = Self { output, steps, eval_every, save_every, resume, ..self.clone() };
        json!(format!("{same:?} {sampler:?}"))
    }

    /// Updates of a step that has so many answers.
    fn updates(&self, answers: usize) -> usize {
        self.epochs.max(1) * answers.div_ceil(answers.div_ceil(self.minibatches.max(1)).max(1))
    }
}

/// Saved states that are kept: of two learners, one may have been saved and the other not.
const KEPT: usize = 2;

/// A run under way.
pub struct Run {
    settings: Settings,
    policy: Learner,
    critic: Option<Learner>,
    reference: Option<RewardModel>,
    judge: Judge,
    source: Source,
    sampler: Sampler,
    validation: Vec<Question>,
    /// Open once it is known where the run begins.
    report: Option<Report>,
    position: Position,
    /// Of the policy, and of the critic.
    states: [States; 2],
}

/// What the tokens of a step are pushed by; `[T]` of each answer.
struct Push {
    advantages: Vec<Vec<f32>>,
    /// The policy's that sampled.
    old: Vec<Vec<f32>>,
    /// The reference's; empty without one.
    reference: Vec<Vec<f32>>,
    /// What the critic should have said, and did; empty without one.
    returns: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    kl: f64,
}

impl Run {
    /// Loads policy, reference and critic.
    pub fn new(
        settings: Settings,
        policy: PathBuf,
        judge: Judge,
        source: Source,
        sampler: Sampler,
        validation: Vec<Question>,
    ) -> anyhow::Result<Self> {
        let (adam, budget) = (settings.optimizer, settings.micro_batch_tokens);
        let critic = match settings.algorithm {
            Algorithm::Ppo => {
                let from = settings.critic.as_ref().unwrap_or(&policy);
                Some(Learner::load(from, HeadKind::QScalar, settings.seed, adam, budget)?)
            }
            _ => None,
        };
        std::fs::create_dir_all(&settings.output)?;
        let mut run = Self {
            reference: (settings.kl_coef > 0.0).then(|| RewardModel::load(&policy)).transpose()?,
            policy: Learner::load(&policy, HeadKind::QVocab, settings.seed, adam, budget)?,
            critic,
            judge,
            source,
            sampler,
            validation,
            report: None,
            position: Position { step: 0, settings: settings.decisive(&sampler), best: None },
            states: ["policy", "critic"].map(|name| States::new(&settings.output.join(name), KEPT)),
            settings,
        };
        if run.settings.resume {
            run.resume()?;
        }
        run.report = Some(Report::open(&run.settings.output, run.position.step, run.settings.steps)?);
        Ok(run)
    }

    /// Goes on where the policy's newest state is: it is saved last.
    fn resume(&mut self) -> anyhow::Result<()> {
        let updates = self.settings.updates(self.settings.prompts * self.sampler.samples);
        let Some(saved) = self.policy.resume(&self.states[0], None, updates)? else { return Ok(()) };
        anyhow::ensure!(
            saved.settings == self.position.settings,
            "this is another run's state: it had {}, now {}",
            saved.settings,
            self.position.settings
        );
        if let Some(critic) = &mut self.critic {
            critic.resume(&self.states[1], Some(saved.step), updates)?;
        }
        // The questions that were asked already.
        self.source.take(self.settings.prompts * saved.step, &self.policy.model)?;
        self.position = saved;
        Ok(())
    }

    fn save(&self) -> anyhow::Result<()> {
        if let Some(critic) = &self.critic {
            critic.save_state(&self.states[1], &self.position)?;
        }
        self.policy.save_state(&self.states[0], &self.position)
    }

    /// Learns, and writes the policy to `output/model`. Gives the last Pass@1 on the validation questions.
    pub fn run(mut self) -> anyhow::Result<f64> {
        let mut last = if self.position.step == 0 { self.evaluate(0)? } else { f64::NAN };
        for step in self.position.step + 1..=self.settings.steps {
            self.step(step)?;
            self.position.step = step;
            if self.settings.save_every > 0 && step.is_multiple_of(self.settings.save_every) {
                self.save()?;
            }
            if step == self.settings.steps || step.is_multiple_of(self.settings.eval_every.max(1)) {
                last = self.evaluate(step)?;
            }
        }
        if last.is_nan() {
            last = self.evaluate(self.position.step)?; // there was nothing left to do
        }
        if let Some(report) = &self.report {
            report.finish();
        }
        self.policy.save(&self.settings.output.join("model"))?;
        Ok(last)
    }

    fn evaluate(&mut self, step: usize) -> anyhow::Result<f64> {
        let pass = pass_at_1(&self.policy.model, &self.validation, self.sampler.max_new_tokens)?;
        if let Some(report) = &mut self.report {
            report.numbers(step, "eval", &[("pass_at_1", pass)])?;
            report.say(&format!("step {step}: Pass@1 {pass:.4}"));
        }
        Ok(pass)
    }

    fn step(&mut self, step: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        let questions = self.source.take(self.settings.prompts, &self.policy.model)?;
        let seed = self.settings.seed.wrapping_mul(1 << 20).wrapping_add(step as u64);
        let rollout = self.sampler.rollout(&self.policy.model, &questions, seed, &self.judge)?;
        let trajectories: Vec<Trajectory> = rollout.answers.iter().map(|a| a.trajectory()).collect();
        let push = self.push(&rollout, &trajectories)?;
        let learning = Instant::now();
        let (outcome, grad_norm) = self.learn(&trajectories, &push)?;
        let (learning, all) = (learning.elapsed().as_secs_f64(), start.elapsed().as_secs_f64());
        let answers = rollout.answers.len().max(1) as f64;
        let tokens: usize = rollout.answers.iter().map(|a| a.response_ids.len()).sum();
        let (reward, reward_std) = moments(rollout.rewards.iter().flatten());
        let share = |of: fn(&crate::rollout::Answer) -> bool| {
            rollout.answers.iter().filter(|a| of(a)).count() as f64 / answers
        };
        let right = share(|a| a.is_right);
        let numbers = [
            ("reward", reward),
            ("reward_std", reward_std),
            ("right", right),
            ("finished", share(|a| a.finished)),
            ("response_length", tokens as f64 / answers),
            ("kl", push.kl),
            ("clip_fraction", outcome.clipped as f64 / outcome.tokens.max(1) as f64),
            ("policy_moved", outcome.moved / outcome.tokens.max(1) as f64),
            ("grad_norm", grad_norm),
            ("sampling_tokens_per_second", tokens as f64 / rollout.sampling.as_secs_f64().max(1e-9)),
            ("sampling_seconds", rollout.sampling.as_secs_f64()),
            ("waiting_seconds", rollout.waiting.as_secs_f64()),
            ("waiting_share", rollout.waiting.as_secs_f64() / all),
            ("learning_seconds", learning),
        ];
        if let Some(report) = &mut self.report {
            report.numbers(step, "train", &numbers)?;
            report.progress(step, format!("{}: right {right:.3} · reward {reward:.3}", rollout.reward));
        }
        Ok(())
    }

    /// From rewards to advantages, as the algorithm has it.
    fn push(&self, rollout: &Rollout, trajectories: &[Trajectory]) -> anyhow::Result<Push> {
        let s = &self.settings;
        let is_immediate = match s.credit {
            Credit::Auto => matches!(rollout.reward.as_str(), "advantage" | "logit" | "centered_logit"),
            Credit::Immediate => true,
            Credit::Return => false,
        };
        let old = self.policy.log_probs(trajectories)?;
        let reference = match &self.reference {
            Some(reference) => log_probs(reference, trajectories, s.micro_batch_tokens)?,
            None => Vec::new(),
        };
        let mut rewards = rollout.rewards.clone();
        let scores: Vec<f32> = rewards.iter().map(|r| score(r, is_immediate)).collect();
        scale(&mut rewards, &rollout.reward, s.normalize);
        if s.end_by_mean && is_immediate {
            rewards.iter_mut().for_each(|r| end_by_mean(r));
        }
        let mut kl_sum = 0.0;
        let tokens: usize = old.iter().map(Vec::len).sum();
        for (i, from) in reference.iter().enumerate() {
            for (t, (log_pi, log_ref)) in old[i].iter().zip(from).enumerate() {
                let distance = s.kl.of(*log_pi, *log_ref);
                kl_sum += f64::from(distance);
                // GRPO has it in the loss.
                if s.algorithm != Algorithm::Grpo {
                    rewards[i][t] -= (s.kl_coef * f64::from(distance)) as f32;
                }
            }
        }
        let mut push = Push {
            advantages: Vec::new(),
            old,
            reference,
            returns: Vec::new(),
            values: Vec::new(),
            kl: kl_sum / tokens.max(1) as f64,
        };
        match (s.algorithm, &self.critic) {
            (Algorithm::Grpo, _) => {
                let each = group_advantages(&scores, self.sampler.samples).into_iter().zip(&rewards);
                push.advantages = each.map(|(a, r)| vec![a; r.len()]).collect();
            }
            (Algorithm::Ppo, Some(critic)) => {
                push.values = critic.values(trajectories)?;
                let (_, value_std) = moments(push.values.iter().flatten());
                for (rewards, values) in rewards.iter().zip(&push.values) {
                    let (mut advantages, mut targets) = gae(rewards, values, s.gamma, s.lambda);
                    if is_immediate {
                        advantages = q_advantages(rewards, values, s.critic_weight, value_std);
                        targets = returns(rewards, s.gamma);
                    }
                    push.advantages.push(advantages);
                    push.returns.push(targets);
                }
                if !is_immediate {
                    normalize(&mut push.advantages, Normalize::Standard);
                }
            }
            _ if is_immediate => push.advantages = rewards,
            _ => push.advantages = rewards.iter().map(|r| returns(r, s.gamma)).collect(),
        }
        Ok(push)
    }

    fn learn(&mut self, trajectories: &[Trajectory], push: &Push) -> anyhow::Result<(Outcome, f64)> {
        let s = &self.settings;
        let (mut outcome, mut grad_norm) = (Outcome::default(), 0.0);
        let size = trajectories.len().div_ceil(s.minibatches.max(1)).max(1);
        for _ in 0..s.epochs.max(1) {
            for (number, batch) in trajectories.chunks(size).enumerate() {
                let first = number * size;
                let of = |all: &[Vec<f32>], places: &[usize]| -> Vec<f32> {
                    places.iter().flat_map(|i| all.get(first + i).cloned().unwrap_or_default()).collect()
                };
                let total: usize = batch.iter().map(|t| t.response_ids.len()).sum();
                let total = total as f64;
                grad_norm = self.policy.update(batch, s.lr.0, |places, outputs| {
                    let advantages = of(&push.advantages, places);
                    if s.algorithm == Algorithm::Reinforce {
                        return reinforce(outputs, &advantages, total);
                    }
                    let (mut loss, came_out) =
                        clipped(outputs, &advantages, &of(&push.old, places), s.clip, total)?;
                    outcome.add(came_out);
                    if s.algorithm == Algorithm::Grpo && !push.reference.is_empty() {
                        loss = (loss + (kl(outputs, &of(&push.reference, places), total)? * s.kl_coef)?)?;
                    }
                    Ok(loss)
                })?;
                if let Some(critic) = &mut self.critic {
                    let states: Vec<Trajectory> = batch.iter().map(crate::learner::states).collect();
                    critic.update(&states, s.lr.1, |places, outputs| {
                        let (returns, old) = (of(&push.returns, places), of(&push.values, places));
                        value(outputs, &returns, &old, s.clip, total)
                    })?;
                }
            }
        }
        Ok((outcome, grad_norm))
    }
}

/// One number for an answer.
fn score(rewards: &[f32], is_immediate: bool) -> f32 {
    let sum: f64 = rewards.iter().map(|r| f64::from(*r)).sum();
    (if is_immediate { sum / rewards.len().max(1) as f64 } else { sum }) as f32
}

/// Scales the rewards that are there: of an outcome the last tokens', of steps those that end one, else all.
fn scale(rewards: &mut [Vec<f32>], reward: &str, how: Normalize) {
    let is_there = |t: usize, all: &[f32]| match reward {
        "outcome" | "verifier" => t + 1 == all.len(),
        "step" => all[t] != 0.0,
        _ => true,
    };
    let places: Vec<Vec<usize>> =
        rewards.iter().map(|r| (0..r.len()).filter(|t| is_there(*t, r)).collect()).collect();
    let mut some: Vec<Vec<f32>> =
        rewards.iter().zip(&places).map(|(r, places)| places.iter().map(|t| r[*t]).collect()).collect();
    normalize(&mut some, how);
    for ((rewards, places), some) in rewards.iter_mut().zip(places).zip(some) {
        places.into_iter().zip(some).for_each(|(t, r)| rewards[t] = r);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rewards_that_are_there_are_scaled() {
        let mut outcome = vec![vec![0.0, 0.0, 3.0], vec![0.0, 1.0]];
        scale(&mut outcome, "outcome", Normalize::Standard);
        assert_eq!(outcome, [vec![0.0, 0.0, 1.0], vec![0.0, -1.0]]);
        let mut all = vec![vec![0.0, 2.0]];
        scale(&mut all, "advantage", Normalize::Standard);
        assert_eq!(all, [vec![-1.0, 1.0]]);
    }
}
