//! Scores shaped for the wire.

use std::time::Duration;

use qrm_model::reward::{Normalize, Stats, TokenScores};
use qrm_model::{RewardModel, Trajectory};
use qrm_proto::response::{Datum, Floats, RewardsResponse, Stats as WireStats, Timing, Usage};

use super::trajectories::Origin;
use super::{Options, Prepared};
use crate::engine::job::JobOutput;
use crate::metrics::drift::Drift;

/// A prepared request without its trajectories, which went to the engine.
pub(crate) struct Pending {
    origins: Vec<Origin>,
    options: Options,
    trajectories: Vec<Trajectory>,
    /// Counts the rewards; none offline.
    drift: Option<Drift>,
}

impl Prepared {
    /// Splits off what the engine needs; token ids are shared, not copied.
    pub(crate) fn split(self) -> (Vec<Trajectory>, Pending) {
        let pending = Pending {
            origins: self.origins,
            options: self.options,
            trajectories: self.trajectories.clone(),
            drift: None,
        };
        (self.trajectories, pending)
    }
}

impl Pending {
    /// The same, counted.
    pub(crate) fn watched(self, drift: &Drift) -> Self {
        Self { drift: Some(drift.clone()), ..self }
    }

    /// The whole answer.
    pub(crate) fn answer(
        mut self,
        mut output: JobOutput,
        model: &RewardModel,
        model_name: &str,
        tokenize: Duration,
    ) -> RewardsResponse {
        let scores = std::mem::take(&mut output.scores);
        let of = |(i, scores): (usize, &TokenScores)| self.rewards(i, scores, model);
        let mut rewards: Vec<Vec<f32>> = scores.iter().enumerate().map(of).collect();
        let stats = Stats::of(rewards.iter().flatten());
        rewards.iter_mut().for_each(|values| self.options.normalize.apply(values, &stats));
        let rows = rewards.into_iter().zip(scores).enumerate();
        let data = rows.map(|(i, (rewards, scores))| self.datum(i, rewards, scores, model)).collect();
        RewardsResponse { data, ..self.closing(&output, &stats, model, model_name, tokenize) }
    }

    /// Whether a trajectory's rewards do not depend on the others'.
    pub(crate) fn is_separable(&self) -> bool {
        self.options.normalize == Normalize::None
    }

    /// One trajectory's part of an answer in parts, and its rewards as they enter the statistics.
    pub(crate) fn part(
        &mut self,
        index: usize,
        scores: TokenScores,
        model: &RewardModel,
    ) -> (Datum, Vec<f32>) {
        let rewards = self.rewards(index, &scores, model);
        (self.datum(index, rewards.clone(), scores, model), rewards)
    }

    /// `[T]`, as they enter the statistics.
    fn rewards(&self, index: usize, scores: &TokenScores, model: &RewardModel) -> Vec<f32> {
        let last_tokens = self.origins[index].last_tokens.as_ref();
        let steps = last_tokens.and_then(|last| model.step_rewards(last, &scores.logit));
        let rewards = steps.unwrap_or_else(|| scores.rewards(self.options.reward));
        if let Some(drift) = &self.drift {
            drift.observe(self.options.reward, &rewards, scores);
        }
        rewards
    }

    /// All but the data.
    pub(crate) fn closing(
        &self,
        output: &JobOutput,
        stats: &Stats,
        model: &RewardModel,
        model_name: &str,
        tokenize: Duration,
    ) -> RewardsResponse {
        let prompt_tokens = self.trajectories.iter().map(|t| t.prompt_ids.len()).sum();
        let response_tokens = self.trajectories.iter().map(|t| t.response_ids.len()).sum();
        RewardsResponse {
            object: "list",
            model: model_name.to_owned(),
            model_version: model.version().to_owned(),
            reward: self.options.reward.as_str(),
            data: Vec::new(),
            stats: WireStats { count: stats.count, mean: stats.mean, std: stats.std },
            usage: Usage {
                prompt_tokens,
                response_tokens,
                computed_tokens: output.computed_tokens,
                cached_tokens: (prompt_tokens + response_tokens).saturating_sub(output.computed_tokens),
            },
            timing: Timing {
                tokenize_ms: milliseconds(tokenize),
                queue_ms: milliseconds(output.queue_time),
                compute_ms: milliseconds(output.compute_time),
            },
        }
    }

    /// Of normalised rewards; each index once.
    fn datum(
        &mut self,
        index: usize,
        mut rewards: Vec<f32>,
        scores: TokenScores,
        model: &RewardModel,
    ) -> Datum {
        let Options { scale, include, format, span_reduce, .. } = self.options;
        let Origin { input, id, offsets, spans, .. } = std::mem::take(&mut self.origins[index]);
        let response_ids = &self.trajectories[index].response_ids;
        let floats = |wanted: bool, values: Vec<f32>| wanted.then(|| Floats::new(values, format));
        let token = |id: &u32| model.text().token(*id).unwrap_or_default();
        rewards.iter_mut().for_each(|r| *r = finite(f64::from(*r) * f64::from(scale)));
        if let Some(spans) = spans {
            rewards = spans.reduce(&rewards, span_reduce);
        }
        let sum: f64 = rewards.iter().map(|r| f64::from(*r)).sum();
        Datum {
            index,
            input,
            id,
            score: finite(sum / rewards.len().max(1) as f64),
            sum: finite(sum),
            length: rewards.len(),
            rewards: Floats::new(rewards, format),
            token_ids: include.token_ids.then(|| response_ids.to_vec()),
            tokens: include.tokens.then(|| response_ids.iter().map(token).collect()),
            offsets,
            logit: floats(include.logit, scores.logit),
            logsumexp: floats(include.logsumexp, scores.logsumexp),
            max: floats(include.max, scores.max),
            entropy: floats(include.entropy, scores.entropy),
        }
    }
}

/// The nearest number that there is: a large `scale` goes beyond them, and JSON has no infinity.
pub(super) fn finite(x: f64) -> f32 {
    x.clamp(f32::MIN.into(), f32::MAX.into()) as f32
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
