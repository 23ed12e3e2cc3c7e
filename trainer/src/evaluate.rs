//! How good a reward model is on held-out data.

use std::collections::BTreeMap;

use qrm_model::reward::{Stats, TokenScores};
use qrm_model::{RewardKind, RewardModel, Trajectory};
use serde::Serialize;

use crate::batches::within;
use crate::credit::{Reading, ahead, answer, readings};
use crate::data::Example;

/// Of a reward model on pairs, or of a policy on answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Pairs, or answers.
    pub examples: usize,
    /// The reward that is served by default.
    pub reward: &'static str,
    /// Share of pairs whose chosen answer scores higher; ties count half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean of score of chosen − score of rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Expected calibration error of `σ(β · margin)` in ten bins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_error: Option<f64>,
    /// Mean of `−log φ` of the tokens of the chosen (or only) answers, in nats; vocabulary heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// Mean entropy of `φ(·|s_t)`, in nats; vocabulary heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Mean of `logsumexp − max`, which the entropy bounds (Proposition 3.2); Assumption 3.3 wants it small.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logsumexp_minus_max: Option<f64>,
    /// Mean of `(tanh Z − label)²` over labelled steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_error: Option<f64>,
    /// Mean of the served reward over all response tokens; none while a DPO policy's reference is not beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_mean: Option<f64>,
    /// Its standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// What each of the model's rewards says of the pairs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub readings: BTreeMap<&'static str, Reading>,
}

impl Evaluation {
    /// The numbers there are, by name.
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        let optional = [
            ("accuracy", self.accuracy),
            ("margin", self.margin),
            ("calibration_error", self.calibration_error),
            ("nll", self.nll),
            ("entropy", self.entropy),
            ("logsumexp_minus_max", self.logsumexp_minus_max),
            ("step_error", self.step_error),
            ("reward_mean", self.reward_mean),
            ("reward_std", self.reward_std),
        ];
        let default = self.readings.get(self.reward).and_then(|r| r.credit_auc);
        let optional = optional.into_iter().chain([("credit_auc", default)]);
        optional.filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// What the best model has most of.
    pub fn quality(&self) -> f64 {
        self.accuracy.or(self.step_error.or(self.nll).map(|loss| -loss)).unwrap_or(0.0)
    }
}

/// One number for an answer: what the training compares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// What rewards of this kind say of it.
    Served(RewardKind),
    /// Sum of log φ, minus the reference's: of a policy that has no reference beside it.
    LogRatio,
}

impl Score {
    /// Of an answer's scores.
    pub fn of(self, scores: &TokenScores, reference: f32) -> f64 {
        match self {
            Self::Served(kind) => answer(kind, &scores.rewards(kind)),
            Self::LogRatio => {
                let wide = |v: &f32| f64::from(*v);
                let log_phi = scores.logit.iter().zip(&scores.logsumexp).map(|(z, l)| wide(z) - wide(l));
                log_phi.sum::<f64>() - f64::from(reference)
            }
        }
    }
}

/// Scores all answers in batches of at most `tokens` tokens, in order.
pub fn score_all(
    model: &RewardModel,
    answers: &[Trajectory],
    tokens: usize,
) -> anyhow::Result<Vec<TokenScores>> {
    let mut all = Vec::with_capacity(answers.len());
    for batch in within(answers.iter().map(Trajectory::len), tokens) {
        all.extend(model.score(&answers[batch])?.scores);
    }
    Ok(all)
}

/// Evaluates on pairs or answers; `beta` scales margins to log odds.
pub fn evaluate(
    model: &RewardModel,
    examples: &[Example],
    score: Score,
    beta: f64,
    tokens: usize,
) -> anyhow::Result<Evaluation> {
    let answers: Vec<Trajectory> = examples.iter().flat_map(|e| e.answers.clone()).collect();
    let scores = score_all(model, &answers, tokens)?;
    let mut evaluation = Evaluation {
        examples: examples.len(),
        reward: model.head().default_reward().as_str(),
        ..Evaluation::default()
    };

    let reward = model.head().default_reward();
    let rewards: Vec<f32> = scores.iter().flat_map(|s| s.rewards(reward)).collect();
    if !rewards.is_empty() {
        let stats = Stats::of(rewards.iter());
        (evaluation.reward_mean, evaluation.reward_std) = (Some(stats.mean), Some(stats.std));
    }
    let errors: Vec<f64> = examples
        .iter()
        .zip(&scores)
        .flat_map(|(e, s)| e.steps.iter().map(|(t, label)| f64::from(s.logit[*t].tanh() - label).powi(2)))
        .collect();
    if !errors.is_empty() {
        evaluation.step_error = Some(errors.iter().sum::<f64>() / errors.len() as f64);
    }

    if model.head().is_vocabulary() {
        let tokens = scores.iter().map(|s| s.logit.len()).sum::<usize>().max(1) as f64;
        let mean = |of: &dyn Fn(&TokenScores) -> f64| scores.iter().map(of).sum::<f64>() / tokens;
        let total = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        evaluation.entropy = Some(mean(&|s| total(&s.entropy)));
        evaluation.logsumexp_minus_max = Some(mean(&|s| total(&s.logsumexp) - total(&s.max)));
        let per_example = scores.len() / examples.len().max(1);
        let chosen = || scores.iter().step_by(per_example.max(1));
        let chosen_tokens = chosen().map(|s| s.logit.len()).sum::<usize>();
        let nll = chosen().map(|s| total(&s.logsumexp) - total(&s.logit)).sum::<f64>();
        evaluation.nll = Some(nll / chosen_tokens.max(1) as f64);
    }

    if examples.iter().all(|e| e.answers.len() == 2) {
        let margins: Vec<f64> = scores
            .chunks_exact(2)
            .zip(examples)
            .map(|(pair, e)| {
                let reference = |i: usize| e.reference.get(i).copied().unwrap_or(0.0);
                score.of(&pair[0], reference(0)) - score.of(&pair[1], reference(1))
            })
            .collect();
        let n = margins.len().max(1) as f64;
        evaluation.accuracy = Some(margins.iter().map(|m| ahead(*m, 0.0)).sum::<f64>() / n);
        evaluation.margin = Some(margins.iter().sum::<f64>() / n);
        evaluation.calibration_error = Some(calibration_error(&margins, beta));
        evaluation.readings = readings(model.head(), examples, &scores);
    }
    Ok(evaluation)
}

/// Expected calibration error over ten bins of confidence: `|σ(β m)|` folded to [0.5, 1], against the share that is right.
fn calibration_error(margins: &[f64], beta: f64) -> f64 {
    let mut bins = [(0usize, 0.0, 0.0); 10];
    for margin in margins {
        let confidence = 1.0 / (1.0 + (-beta * margin.abs()).exp());
        let bin = &mut bins[(((confidence - 0.5) * 20.0) as usize).min(9)];
        bin.0 += 1;
        bin.1 += confidence;
        bin.2 += ahead(*margin, 0.0);
    }
    let gaps = bins.iter().map(|(_, confidence, right): &(usize, f64, f64)| (confidence - right).abs());
    gaps.sum::<f64>() / margins.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn calibration_of_a_coin_and_of_an_oracle() {
        assert!((super::calibration_error(&[1000.0, 1000.0, -1000.0, 1000.0], 1.0) - 0.25).abs() < 1e-9);
        assert!(super::calibration_error(&[50.0; 8], 1.0) < 1e-9);
        assert!((super::calibration_error(&[1e-9, -1e-9], 1.0)).abs() < 1e-6);
    }
}
