//! Whether a reward finds the token at which an answer goes wrong.

use std::collections::BTreeMap;

use qrm_model::RewardKind;
use qrm_model::reward::{HeadKind, TokenScores};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::data::Example;

/// What one of a model's rewards says of pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Reading {
    /// Share of pairs whose chosen answer has more of it; ties count half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean over rejected answers of the share of right tokens (those before the first wrong one) that have more of it
    /// than the first wrong token; ties count half. Of answers that are right for a token at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_auc: Option<f64>,
    /// Share of the same answers whose first wrong token has less of it than every right token; one of n that tie for least
    /// counts 1/n.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_found: Option<f64>,
}

/// Every reward that a model of kind `head` gave, by name. `scores` are of the pairs' answers, chosen first.
pub fn readings(
    head: HeadKind,
    examples: &[Example],
    scores: &[TokenScores],
) -> BTreeMap<&'static str, Reading> {
    let kinds = RewardKind::ALL.into_iter().filter(|kind| head.gives(*kind));
    let readings = kinds.filter_map(|kind| {
        let rewards: Vec<Vec<f32>> = scores.iter().map(|s| s.rewards(kind)).collect();
        // A DPO policy that is still in training has no reference beside it, a step model no separator.
        let all_there = rewards.iter().zip(scores).all(|(r, s)| r.len() == s.logit.len());
        all_there.then(|| (kind.as_str(), reading(kind, examples, &rewards)))
    });
    readings.collect()
}

/// Of rewards that know nothing.
pub fn noise(examples: &[Example], seed: u64) -> Reading {
    let mut rng = StdRng::seed_from_u64(seed);
    let answers = examples.iter().flat_map(|e| &e.answers);
    let mut noise = |n: usize| (0..n).map(|_| rng.random::<f32>()).collect();
    let rewards: Vec<Vec<f32>> = answers.map(|t| noise(t.response_ids.len())).collect();
    reading(RewardKind::Logit, examples, &rewards)
}

fn reading(kind: RewardKind, examples: &[Example], rewards: &[Vec<f32>]) -> Reading {
    let pairs = || rewards.chunks_exact(2);
    let accuracy = mean(pairs().map(|pair| ahead(answer(kind, &pair[0]), answer(kind, &pair[1]))));
    let located = examples.iter().zip(pairs()).filter_map(|(e, pair)| {
        let tokens = if kind == RewardKind::Step { spread(&pair[1]) } else { pair[1].clone() };
        Some((tokens, e.first_wrong?))
    });
    let located: Vec<(Vec<f32>, usize)> = located.collect();
    let credit = |of: fn(&[f32], usize) -> Option<f64>| mean(located.iter().filter_map(|(r, at)| of(r, *at)));
    Reading { accuracy, credit_auc: credit(auc), credit_found: credit(found) }
}

/// A whole answer's worth by the rewards of its tokens, as its kind of model was trained to compare answers.
pub fn answer(kind: RewardKind, rewards: &[f32]) -> f64 {
    let wide = rewards.iter().map(|r| f64::from(*r));
    match kind {
        RewardKind::Advantage | RewardKind::Logit | RewardKind::CenteredLogit => {
            wide.sum::<f64>() / rewards.len().max(1) as f64
        }
        RewardKind::Outcome | RewardKind::Dpo => wide.sum(),
        // Its worst step. An answer without one is not known to be wrong.
        RewardKind::Step => wide.filter(|r| *r != 0.0).reduce(f64::min).unwrap_or(1.0),
    }
}

/// A step's reward on each of its tokens.
fn spread(rewards: &[f32]) -> Vec<f32> {
    let mut all = rewards.to_vec();
    for t in (1..all.len()).rev() {
        if all[t - 1] == 0.0 {
            all[t - 1] = all[t];
        }
    }
    all
}

/// The share of tokens before `first_wrong` that have more than it; none where there are none.
pub fn auc(rewards: &[f32], first_wrong: usize) -> Option<f64> {
    let wrong = f64::from(*rewards.get(first_wrong)?);
    mean(rewards[..first_wrong].iter().map(|right| ahead(f64::from(*right), wrong)))
}

/// Whether `first_wrong` has less than every token before it, or its share of a tie; none where there are none.
pub fn found(rewards: &[f32], first_wrong: usize) -> Option<f64> {
    let wrong = *rewards.get(first_wrong)?;
    let right = &rewards[..first_wrong];
    let ties = right.iter().filter(|right| **right == wrong).count();
    let is_least = right.iter().all(|right| *right >= wrong);
    (!right.is_empty()).then(|| f64::from(u8::from(is_least)) / (ties + 1) as f64)
}

/// What a pair counts for in the share that is told apart: 1 where `a` is more than `b`, ½ where they tie.
pub fn ahead(a: f64, b: f64) -> f64 {
    if a == b { 0.5 } else { f64::from(u8::from(a > b)) }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_token_is_found() {
        assert_eq!(auc(&[0.0, -0.1, -3.0, 5.0], 2), Some(1.0));
        assert_eq!(auc(&[0.0, -3.0, -3.0, -9.0], 2), Some(0.75));
        assert_eq!(auc(&[0.0, -9.0], 1), Some(1.0));
        assert_eq!(auc(&[-1.0, 0.0], 0), None);
        assert_eq!(auc(&[-1.0, 0.0], 2), None);
        assert_eq!(found(&[0.0, -0.1, -3.0, -5.0], 2), Some(1.0));
        assert_eq!(found(&[0.0, -3.0, -3.0, -9.0], 2), Some(0.5));
        assert_eq!(found(&[-3.5, 0.0, -3.0], 2), Some(0.0));
        assert_eq!(found(&[-1.0, 0.0], 0), None);
        assert_eq!(spread(&[0.0, 0.0, 0.7, 0.0, -0.5]), [0.7, 0.7, 0.7, -0.5, -0.5]);
    }
}
