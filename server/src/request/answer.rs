//! Scores shaped for the wire.

use std::time::Duration;

use qrm_model::reward::{Stats, TokenScores};
use qrm_model::{RewardModel, Trajectory};
use qrm_proto::response::{Datum, Floats, RewardsResponse, Stats as WireStats, Timing, Usage};

use super::Prepared;
use super::trajectories::Origin;
use crate::engine::job::JobOutput;

/// A prepared request without its trajectories, which went to the engine.
pub(crate) struct Pending {
    origins: Vec<Origin>,
    options: super::Options,
    trajectories: Vec<Trajectory>,
}

impl Prepared {
    /// Splits off what the engine needs; token ids are shared, not copied.
    pub(crate) fn split(self) -> (Vec<Trajectory>, Pending) {
        let pending =
            Pending { origins: self.origins, options: self.options, trajectories: self.trajectories.clone() };
        (self.trajectories, pending)
    }
}

impl Pending {
    /// The whole answer.
    pub(crate) fn answer(
        self,
        output: JobOutput,
        model: &RewardModel,
        model_name: &str,
        tokenize: Duration,
    ) -> RewardsResponse {
        let reward = self.options.reward;
        let mut rewards: Vec<Vec<f32>> = output.scores.iter().map(|s| s.rewards(reward)).collect();
        let stats = Stats::of(rewards.iter().flatten());
        for values in &mut rewards {
            self.options.normalize.apply(values, &stats);
            values.iter_mut().for_each(|r| *r *= self.options.scale);
        }
        let prompt_tokens = self.trajectories.iter().map(|t| t.prompt_ids.len()).sum();
        let response_tokens = self.trajectories.iter().map(|t| t.response_ids.len()).sum();
        let usage = Usage {
            prompt_tokens,
            response_tokens,
            computed_tokens: output.computed_tokens,
            cached_tokens: (prompt_tokens + response_tokens).saturating_sub(output.computed_tokens),
        };
        let timing = Timing {
            tokenize_ms: milliseconds(tokenize),
            queue_ms: milliseconds(output.queue_time),
            compute_ms: milliseconds(output.compute_time),
        };
        let data = self.data(rewards, output.scores, model);
        RewardsResponse {
            object: "list",
            model: model_name.to_owned(),
            model_version: model.version().to_owned(),
            reward: reward.as_str(),
            data,
            stats: WireStats { count: stats.count, mean: stats.mean, std: stats.std },
            usage,
            timing,
        }
    }

    fn data(self, rewards: Vec<Vec<f32>>, scores: Vec<TokenScores>, model: &RewardModel) -> Vec<Datum> {
        let Self { origins, options, trajectories } = self;
        let include = options.include;
        let floats = |wanted: bool, values: Vec<f32>| wanted.then(|| Floats::new(values, options.format));
        let token = |id: &u32| model.text().token(*id).unwrap_or_default();
        let rows = origins.into_iter().zip(trajectories).zip(rewards.into_iter().zip(scores));
        rows.enumerate()
            .map(|(index, ((origin, trajectory), (rewards, scores)))| {
                let rewards = match &origin.spans {
                    Some(spans) => spans.reduce(&rewards, options.span_reduce),
                    None => rewards,
                };
                let sum: f64 = rewards.iter().map(|r| f64::from(*r)).sum();
                Datum {
                    index,
                    input: origin.input,
                    id: origin.id,
                    score: (sum / rewards.len().max(1) as f64) as f32,
                    sum: sum as f32,
                    length: rewards.len(),
                    rewards: Floats::new(rewards, options.format),
                    token_ids: include.token_ids.then(|| trajectory.response_ids.to_vec()),
                    tokens: include.tokens.then(|| trajectory.response_ids.iter().map(token).collect()),
                    offsets: origin.offsets,
                    logit: floats(include.logit, scores.logit),
                    logsumexp: floats(include.logsumexp, scores.logsumexp),
                    max: floats(include.max, scores.max),
                    entropy: floats(include.entropy, scores.entropy),
                }
            })
            .collect()
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
