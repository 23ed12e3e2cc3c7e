//! What a model's rewards look like as they go out, before a request's own normalisation and scale: a policy that drifts, or
//! that has learnt to please the reward model, shows here first.

use std::sync::Arc;

use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
    Result,
};
use qrm_model::reward::{HeadKind, RewardKind, TokenScores};

use super::registered;

/// Rewards lie on both sides of 0 and mostly near it.
const REWARDS: [f64; 21] = [
    -64.0, -32.0, -16.0, -8.0, -4.0, -2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0,
    16.0, 32.0, 64.0,
];
/// Nats.
const NATS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0];
/// Tokens of a response.
const LENGTHS: [f64; 12] =
    [8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32_768.0];

/// Numbers of both signs, by model and reward.
#[derive(Clone)]
struct Spreads {
    buckets: HistogramVec,
    gains: CounterVec,
    losses: CounterVec,
    squares: CounterVec,
}

/// Those of all models.
#[derive(Clone)]
pub(super) struct Drifts {
    rewards: Spreads,
    clamped: IntCounterVec,
    scores: Spreads,
    lengths: HistogramVec,
    entropy: HistogramVec,
    peak: HistogramVec,
}

/// Labels of what depends on the reward that was asked for.
const KINDS: [&str; 2] = ["model", "reward"];

impl Spreads {
    fn register(registry: &Registry, name: &str, what: &str) -> Result<Self> {
        let options = HistogramOpts::new(name, format!("{what}.")).buckets(REWARDS.to_vec());
        let counter = |part: &str, help: &str| {
            let options = Opts::new(format!("{name}_{part}_total"), format!("{what}: {help}"));
            registered(registry, CounterVec::new(options, &KINDS)?)
        };
        Ok(Self {
            buckets: registered(registry, HistogramVec::new(options, &KINDS)?)?,
            gains: counter("gains", "the sum of those above 0.")?,
            losses: counter(
                "losses",
                "minus the sum of those below 0. The mean is (gains - losses) / count.",
            )?,
            squares: counter("squares", "the sum of their squares.")?,
        })
    }

    fn of(&self, labels: &[&str]) -> Spread {
        Spread {
            buckets: self.buckets.with_label_values(labels),
            gains: self.gains.with_label_values(labels),
            losses: self.losses.with_label_values(labels),
            squares: self.squares.with_label_values(labels),
        }
    }
}

impl Drifts {
    pub(super) fn register(registry: &Registry) -> Result<Self> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(registry, HistogramVec::new(options, &["model"])?)
        };
        Ok(Self {
            rewards: Spreads::register(registry, "qrm_token_reward", "Rewards of tokens")?,
            clamped: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("qrm_token_reward_clamped_total", "Rewards that rounding had put above 0."),
                    &KINDS,
                )?,
            )?,
            scores: Spreads::register(
                registry,
                "qrm_trajectory_score",
                "Mean rewards of trajectories; of an outcome, the reward",
            )?,
            lengths: histogram("qrm_response_tokens", "Tokens of a response.", &LENGTHS)?,
            entropy: histogram(
                "qrm_token_entropy_nats",
                "Entropy of the model's distribution at a token.",
                &NATS,
            )?,
            peak: histogram(
                "qrm_token_min_entropy_nats",
                "logsumexp - max at a token: how little sure the model is of its favourite.",
                &NATS,
            )?,
        })
    }

    /// Of one model; only rewards that its head gives have series.
    pub(super) fn of(&self, model: &str, head: HeadKind) -> Drift {
        let kind = |kind: RewardKind| {
            let labels = [model, kind.as_str()];
            head.gives(kind).then(|| Rewards {
                tokens: self.rewards.of(&labels),
                clamped: self.clamped.with_label_values(&labels),
                scores: self.scores.of(&labels),
            })
        };
        Drift {
            kinds: RewardKind::ALL.map(kind).into(),
            lengths: self.lengths.with_label_values(&[model]),
            entropy: self.entropy.with_label_values(&[model]),
            peak: self.peak.with_label_values(&[model]),
        }
    }
}

/// Of one model.
#[derive(Clone)]
pub(crate) struct Drift {
    /// In the order of [`RewardKind::ALL`].
    kinds: Arc<[Option<Rewards>]>,
    lengths: Histogram,
    entropy: Histogram,
    peak: Histogram,
}

struct Rewards {
    tokens: Spread,
    clamped: IntCounter,
    scores: Spread,
}

struct Spread {
    buckets: Histogram,
    gains: Counter,
    losses: Counter,
    squares: Counter,
}

impl Spread {
    fn observe(&self, values: impl Iterator<Item = f64>) {
        let local = self.buckets.local();
        let (mut gains, mut losses, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            local.observe(value);
            gains += value.max(0.0);
            losses -= value.min(0.0);
            squares += value * value;
        }
        local.flush();
        self.gains.inc_by(gains);
        self.losses.inc_by(losses);
        self.squares.inc_by(squares);
    }
}

impl Drift {
    /// Counts one trajectory: its rewards `[T]` of a kind, and the scores that they were made of. Zeros that stand where an
    /// outcome or a step has no reward do not count.
    pub(crate) fn observe(&self, kind: RewardKind, rewards: &[f32], scores: &TokenScores) {
        let at = RewardKind::ALL.iter().position(|k| *k == kind);
        let Some(of) = at.and_then(|at| self.kinds.get(at)?.as_ref()) else { return };
        let is_sparse = matches!(kind, RewardKind::Outcome | RewardKind::Step);
        let there = || rewards.iter().filter(|r| !is_sparse || **r != 0.0).map(|r| f64::from(*r));
        of.tokens.observe(there());
        let clamped =
            |ceiling: &[f32]| scores.logit.iter().zip(ceiling).filter(|(z, c)| z > c).count() as u64;
        match kind {
            RewardKind::Advantage => of.clamped.inc_by(clamped(&scores.logsumexp)),
            RewardKind::CenteredLogit => of.clamped.inc_by(clamped(&scores.max)),
            _ => {}
        }
        let score = there().sum::<f64>() / there().count().max(1) as f64;
        of.scores.observe(std::iter::once(score));
        self.lengths.observe(rewards.len() as f64);
        observe(&self.entropy, scores.entropy.iter().map(|h| f64::from(*h)));
        let peaks = scores.logsumexp.iter().zip(&scores.max).map(|(l, m)| f64::from(l - m));
        observe(&self.peak, peaks);
    }
}

/// All at once: one set of atomic additions instead of one for each.
fn observe(histogram: &Histogram, values: impl Iterator<Item = f64>) {
    let local = histogram.local();
    values.for_each(|value| local.observe(value));
    local.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_are_counted_by_model_and_kind() {
        let registry = Registry::new();
        let drift = Drifts::register(&registry).expect("metrics").of("small", HeadKind::QVocab);
        let scores = TokenScores {
            logit: vec![1.0, 2.0],
            logsumexp: vec![2.0, 1.5],
            max: vec![1.5, 1.5],
            entropy: vec![0.3, 0.1],
            own: Vec::new(),
        };
        drift.observe(RewardKind::Advantage, &scores.rewards(RewardKind::Advantage), &scores);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for line in [
            r#"qrm_token_reward_count{model="small",reward="advantage"} 2"#,
            r#"qrm_token_reward_gains_total{model="small",reward="advantage"} 0"#,
            r#"qrm_token_reward_losses_total{model="small",reward="advantage"} 1"#,
            r#"qrm_token_reward_squares_total{model="small",reward="advantage"} 1"#,
            r#"qrm_token_reward_clamped_total{model="small",reward="advantage"} 1"#,
            r#"qrm_trajectory_score_losses_total{model="small",reward="advantage"} 0.5"#,
            r#"qrm_response_tokens_sum{model="small"} 2"#,
            r#"qrm_token_entropy_nats_count{model="small"} 2"#,
            r#"qrm_token_min_entropy_nats_sum{model="small"} 0.5"#,
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
