//! The loop: sample, have it judged, learn.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use qrm_model::reward::Stats;
use qrm_model::{RewardModel, Trajectory};
use qrm_trainer::report::Report;
use qrm_trainer::state::{Position, States};
use serde_json::json;

use crate::evaluate::{pass_at_1, pass_at_n};
use crate::learner::{Learner, log_probs};
use crate::objective::{Outcome, clipped, entropy, kl, reinforce, value};
use crate::push::{Push, scores};
use crate::rollout::{Judge, Rollout, Sampler};
use crate::settings::{Algorithm, Settings};
use crate::task::{Question, Source};

/// Saved states that are kept: of two learners, one may have been saved and the other not.
const KEPT: usize = 2;
/// Among a state's settings: the version of the reward model behind the last rollout.
const MODEL_VERSION: &str = "model_version";

/// A run under way.
pub struct Run {
    settings: Settings,
    policy: Learner,
    critic: Option<Learner>,
    /// Where the policy started.
    reference: RewardModel,
    judge: Judge,
    source: Source,
    sampler: Sampler,
    validation: Vec<Question>,
    /// Open once it is known where the run begins.
    report: Option<Report>,
    position: Position,
    /// Until there is a rollout after a saved state.
    is_resumed: bool,
    /// Of the policy, and of the critic.
    states: [States; 2],
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
                Some(Learner::critic(from, settings.seed, adam, budget)?)
            }
            _ => None,
        };
        std::fs::create_dir_all(&settings.output)?;
        let decisive = json!({ "run": settings.decisive(&sampler), MODEL_VERSION: null });
        let mut run = Self {
            reference: RewardModel::load(&policy)?,
            policy: Learner::policy(&policy, adam, budget)?,
            critic,
            judge,
            source,
            sampler,
            validation,
            report: None,
            position: Position { step: 0, settings: decisive, best: None },
            is_resumed: false,
            states: ["policy", "critic"].map(|name| States::new(&settings.output.join(name), KEPT)),
            settings,
        };
        match run.settings.resume {
            true => run.resume()?,
            false => run.states.iter().try_for_each(States::none_yet)?,
        }
        run.report = Some(Report::open(&run.settings.output, run.position.step, run.settings.steps)?);
        Ok(run)
    }

    /// Goes on where the policy's newest state is: it is saved last.
    fn resume(&mut self) -> anyhow::Result<()> {
        let updates = self.settings.updates(self.settings.prompts * self.sampler.samples);
        if let Some(state) = self.states[0].newest() {
            let at = || state.display().to_string();
            let saved = std::fs::read(state.join("position.json")).with_context(at)?;
            let saved: Position = serde_json::from_slice(&saved).with_context(at)?;
            // Compared with the servers' once they have answered.
            self.position.settings[MODEL_VERSION] = saved.settings[MODEL_VERSION].clone();
        }
        let settings = &self.position.settings;
        let Some(saved) = self.policy.resume(&self.states[0], settings, None, updates)? else {
            return Ok(());
        };
        if let Some(critic) = &mut self.critic {
            critic.resume(&self.states[1], settings, Some(saved.step), updates)?;
        }
        // The questions that were asked already.
        self.source.take(self.settings.prompts * saved.step, &self.policy.model)?;
        self.position = saved;
        self.is_resumed = true;
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
            if step == self.settings.steps || step.is_multiple_of(self.settings.eval_every.max(1)) {
                last = self.evaluate(step)?;
            }
            // After the evaluation, which may have found the best policy so far.
            if self.settings.save_every > 0 && step.is_multiple_of(self.settings.save_every) {
                self.save()?;
            }
        }
        if last.is_nan() {
            // There was nothing left to do, and the report has the evaluation of that step.
            last = pass_at_1(&self.policy.model, &self.validation, self.sampler.max_new_tokens)?;
        }
        if let (true, Some((step, _))) = (self.settings.keep_best, self.position.best) {
            self.say(&format!("the best evaluation was at step {step}: that policy is kept"));
            self.states[0].restore_best(&self.policy.model)?;
        }
        if let Some(report) = &self.report {
            report.finish();
        }
        self.policy.save(&self.settings.output.join("model"))?;
        Ok(last)
    }

    fn say(&self, line: &str) {
        if let Some(report) = &self.report {
            report.say(line);
        }
    }

    fn evaluate(&mut self, step: usize) -> anyhow::Result<f64> {
        let pass = pass_at_1(&self.policy.model, &self.validation, self.sampler.max_new_tokens)?;
        let mut numbers = vec![("pass_at_1", pass)];
        if self.settings.eval_samples > 0 {
            let sampler = Sampler { samples: self.settings.eval_samples, ..self.sampler };
            let sampled = pass_at_n(&self.policy.model, &self.validation, sampler, &[1], 0)?;
            numbers.extend(sampled.first().map(|pass| ("sampled_pass_at_1", *pass)));
        }
        if let Some(report) = &mut self.report {
            report.numbers(step, "eval", &numbers)?;
            let words: Vec<String> = numbers.iter().map(|(name, pass)| format!("{name} {pass:.4}")).collect();
            report.say(&format!("step {step}: {}", words.join(", ")));
        }
        let quality = numbers.last().map_or(pass, |(_, pass)| *pass);
        if self.settings.keep_best && self.position.best.is_none_or(|(_, best)| quality > best) {
            self.position.best = Some((step, quality));
            self.states[0].save_best(&self.policy.model, &json!({ "step": step, "pass_at_1": quality }))?;
        }
        Ok(pass)
    }

    fn step(&mut self, step: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        let questions = self.source.take(self.settings.prompts, &self.policy.model)?;
        let seed = self.settings.seed.wrapping_mul(1 << 20).wrapping_add(step as u64);
        let rollout = self.sampler.rollout(&self.policy.model, &questions, seed, &self.judge)?;
        let has_new_judge = self.judged_by(step, &rollout.model_version)?;
        let trajectories: Vec<Trajectory> = rollout.answers.iter().map(|a| a.trajectory()).collect();
        let push = self.push(&rollout, &trajectories)?;
        let learning = Instant::now();
        let (outcome, grad_norm) = self.learn(step, &trajectories, &push)?;
        let (learning, all) = (learning.elapsed().as_secs_f64(), start.elapsed().as_secs_f64());
        let answers = rollout.answers.len().max(1) as f64;
        let tokens: usize = rollout.answers.iter().map(|a| a.response_ids.len()).sum();
        let Stats { mean: reward, std: reward_std, .. } = Stats::of(scores(&self.settings, &rollout).iter());
        let share = |of: fn(&crate::rollout::Answer) -> bool| {
            rollout.answers.iter().filter(|a| of(a)).count() as f64 / answers
        };
        let right = share(|a| a.is_right);
        let numbers = [
            ("reward", reward),
            ("reward_std", reward_std),
            ("reward_model_changed", f64::from(u8::from(has_new_judge))),
            ("right", right),
            ("finished", share(|a| a.finished)),
            ("response_length", tokens as f64 / answers),
            ("kl", push.kl),
            ("entropy", outcome.mean(outcome.entropy)),
            ("clip_fraction", outcome.mean(outcome.clipped as f64)),
            ("policy_moved", outcome.mean(outcome.moved)),
            ("grad_norm", grad_norm),
            ("sampling_tokens_per_second", tokens as f64 / rollout.sampling.as_secs_f64().max(1e-9)),
            ("scoring_tokens_per_second", tokens as f64 / rollout.scoring.as_secs_f64().max(1e-9)),
            ("learning_tokens_per_second", tokens as f64 / learning.max(1e-9)),
            ("sampling_seconds", rollout.sampling.as_secs_f64()),
            ("scoring_seconds", rollout.scoring.as_secs_f64()),
            ("waiting_seconds", rollout.waiting.as_secs_f64()),
            ("waiting_share", rollout.waiting.as_secs_f64() / all),
            ("learning_seconds", learning),
            ("step_seconds", all),
        ];
        if let Some(report) = &mut self.report {
            report.numbers(step, "train", &numbers)?;
            report.progress(step, format!("{}: right {right:.3} · reward {reward:.3}", rollout.reward));
        }
        Ok(())
    }

    /// Notes a rollout's reward model; whether it is another than before. New weights under a run are its operator's choice,
    /// and told; under a saved state they may be a mistake.
    fn judged_by(&mut self, step: usize, version: &str) -> anyhow::Result<bool> {
        let is_resumed = std::mem::take(&mut self.is_resumed);
        let before = std::mem::replace(&mut self.position.settings[MODEL_VERSION], version.into());
        let Some(before) = before.as_str().filter(|before| *before != version) else { return Ok(false) };
        anyhow::ensure!(
            !is_resumed || self.settings.new_reward_model,
            "the state was saved under version {before} of the reward model, the servers now have {version}: \
             --new-reward-model goes on under it"
        );
        self.say(&format!(
            "warning: from step {step} on version {version} of the reward model judges, before that {before}"
        ));
        Ok(true)
    }

    fn push(&self, rollout: &Rollout, trajectories: &[Trajectory]) -> anyhow::Result<Push> {
        let old = self.policy.log_probs(trajectories)?;
        let reference = log_probs(&self.reference, trajectories, self.settings.micro_batch_tokens)?;
        let values = match &self.critic {
            Some(critic) => critic.values(trajectories)?,
            None => Vec::new(),
        };
        Ok(Push::new(&self.settings, rollout, old, reference, values, self.sampler.samples))
    }

    /// Goes over a step's answers. Gives what the policy did in it, and its last gradient's norm.
    fn learn(
        &mut self,
        step: usize,
        trajectories: &[Trajectory],
        push: &Push,
    ) -> anyhow::Result<(Outcome, f64)> {
        let s = &self.settings;
        let (policy_lr, critic_lr) = s.lr_at(step);
        let (mut outcome, mut grad_norm) = (Outcome::default(), 0.0);
        let size = trajectories.len().div_ceil(s.minibatches.max(1)).max(1);
        for _ in 0..s.epochs.max(1) {
            for (number, batch) in trajectories.chunks(size).enumerate() {
                let first = number * size;
                let of = |all: &[Vec<f32>], places: &Range<usize>| all[first..][places.clone()].concat();
                let total: usize = batch.iter().map(|t| t.response_ids.len()).sum();
                let total = total as f64;
                grad_norm = self.policy.update(batch, policy_lr, |places, outputs| {
                    let (advantages, old) = (of(&push.advantages, &places), of(&push.old, &places));
                    outcome.add(Outcome::of(outputs, &old, s.clip)?);
                    let mut loss = match s.algorithm {
                        Algorithm::Reinforce => reinforce(outputs, &advantages, total)?,
                        _ => clipped(outputs, &advantages, &old, s.clip, total)?,
                    };
                    if s.algorithm == Algorithm::Grpo && s.kl_coef > 0.0 {
                        loss = (loss + (kl(outputs, &of(&push.reference, &places), total)? * s.kl_coef)?)?;
                    }
                    if s.entropy_coef > 0.0 {
                        loss = (loss - (entropy(outputs, total)? * s.entropy_coef)?)?;
                    }
                    Ok(loss)
                })?;
                if let Some(critic) = &mut self.critic {
                    let states: Vec<Trajectory> = batch.iter().map(crate::learner::states).collect();
                    critic.update(&states, critic_lr, |places, outputs| {
                        let (returns, old) = (of(&push.returns, &places), of(&push.values, &places));
                        value(outputs, &returns, &old, s.value_clip, total)
                    })?;
                }
            }
        }
        Ok((outcome, grad_norm))
    }
}
