//! Reward definitions: bounds, placement and normalisation, against plain f64 arithmetic.

use proptest::prelude::*;
use qrm_model::reward::{HeadKind, Normalize, RewardKind, Stats, TokenScores};

const KINDS: [RewardKind; 6] = [
    RewardKind::Advantage,
    RewardKind::Logit,
    RewardKind::CenteredLogit,
    RewardKind::Outcome,
    RewardKind::Step,
    RewardKind::Dpo,
];
const HEADS: [HeadKind; 3] = [HeadKind::QVocab, HeadKind::QScalar, HeadKind::Outcome];

/// What a vocabulary head would say of rows of logits, each with its target, rounded to f32 as a kernel would.
fn vocab_scores(rows: &[(Vec<f32>, usize)]) -> TokenScores {
    let mut scores = TokenScores::default();
    for (row, target) in rows {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|z| (z - max).exp()).sum();
        let lse = max + sum.ln();
        scores.logit.push(row[target % row.len()]);
        scores.logsumexp.push(lse);
        scores.max.push(max);
        scores.entropy.push(row.iter().map(|z| (z - lse).exp() * (lse - z)).sum());
    }
    scores
}

fn scalar_scores(logit: &[f32]) -> TokenScores {
    TokenScores { logit: logit.to_vec(), ..TokenScores::default() }
}

#[test]
fn definitions_on_numbers_worked_out_by_hand() {
    let scores = TokenScores {
        logit: vec![1.0, -2.0],
        logsumexp: vec![1.5, 3.0],
        max: vec![1.0, 2.5],
        entropy: vec![0.5, 0.9],
        own: vec![7.0, 8.0],
    };
    assert_eq!(scores.rewards(RewardKind::Advantage), [-0.5, -5.0]);
    assert_eq!(scores.rewards(RewardKind::CenteredLogit), [0.0, -4.5]);
    assert_eq!(scores.rewards(RewardKind::Logit), [1.0, -2.0]);
    assert_eq!(scores.rewards(RewardKind::Dpo), [7.0, 8.0]);
}

#[test]
fn rounding_never_makes_an_advantage_positive() {
    // A peaked row whose logsumexp was rounded to just below the logit.
    let scores = TokenScores {
        logit: vec![300.0],
        logsumexp: vec![299.999_97],
        max: vec![299.999_97],
        entropy: vec![0.0],
        own: vec![],
    };
    assert_eq!(scores.rewards(RewardKind::Advantage), [0.0]);
    assert_eq!(scores.rewards(RewardKind::CenteredLogit), [0.0]);
}

#[test]
fn outcome_stands_on_the_last_token() {
    assert_eq!(scalar_scores(&[5.0, 6.0, -7.0]).rewards(RewardKind::Outcome), [0.0, 0.0, -7.0]);
    assert_eq!(scalar_scores(&[5.0]).rewards(RewardKind::Outcome), [5.0]);
    assert!(scalar_scores(&[]).rewards(RewardKind::Outcome).is_empty());
}

#[test]
fn every_head_gives_its_default() {
    for head in HEADS {
        assert!(head.gives(head.default_reward()), "{head:?}");
    }
    assert_eq!(HeadKind::QVocab.default_reward(), RewardKind::Advantage);
    for kind in [RewardKind::Advantage, RewardKind::CenteredLogit] {
        assert!(!HeadKind::QScalar.gives(kind) && !HeadKind::Outcome.gives(kind), "{kind:?}");
    }
    assert!(!HeadKind::QVocab.gives(RewardKind::Outcome));
}

#[test]
fn names_on_the_wire() {
    for kind in KINDS {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        let back: RewardKind = serde_json::from_value(kind.as_str().into()).unwrap();
        assert_eq!(back, kind);
    }
    assert_eq!(serde_json::to_value(HeadKind::QVocab).unwrap(), "q_vocab");
    assert_eq!(serde_json::to_value(Normalize::Standard).unwrap(), "standard");
}

#[test]
fn slices_keep_the_parts_aligned() {
    let scores = vocab_scores(&[(vec![1.0, 2.0], 0), (vec![3.0, 5.0], 1), (vec![0.0, 0.0], 0)]);
    let part = scores.slice(1..3);
    assert_eq!(part.rewards(RewardKind::Advantage), scores.rewards(RewardKind::Advantage)[1..3]);
    assert_eq!((part.max.len(), part.entropy.len()), (2, 2));
    let scalar = scalar_scores(&[1.0, 2.0, 3.0]).slice(0..2);
    assert_eq!(scalar, scalar_scores(&[1.0, 2.0]));
}

#[test]
fn one_bad_number_anywhere_shows() {
    let good = vocab_scores(&[(vec![1.0, 2.0], 0)]);
    assert!(good.is_finite());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for part in 0..4 {
            let mut scores = good.clone();
            let parts = [&mut scores.logit, &mut scores.logsumexp, &mut scores.max, &mut scores.entropy];
            parts.into_iter().nth(part).unwrap()[0] = bad;
            assert!(!scores.is_finite());
        }
    }
}

#[test]
fn stats_of_nothing_one_and_constants() {
    assert_eq!(Stats::of([].iter()), Stats { count: 0, mean: 0.0, std: 0.0 });
    assert_eq!(Stats::of([-3.5].iter()), Stats { count: 1, mean: -3.5, std: 0.0 });
    assert_eq!(Stats::of([1.0, 3.0].iter()), Stats { count: 2, mean: 2.0, std: 1.0 });
    // A mean far above the spread costs no precision.
    let far = Stats::of([1.0e7, 1.0e7 + 1.0, 1.0e7 + 2.0].iter());
    assert!((far.std - (2.0_f64 / 3.0).sqrt()).abs() < 1e-9, "{far:?}");
}

#[test]
fn normalising_constants_stays_finite() {
    for value in [0.0_f32, -1.25, 0.1, 1.0e30, f32::MIN_POSITIVE] {
        for how in [Normalize::None, Normalize::Std, Normalize::Standard] {
            let mut rewards = vec![value; 7];
            let stats = Stats::of(rewards.iter());
            how.apply(&mut rewards, &stats);
            assert!(rewards.iter().all(|r| r.is_finite()), "{value} {how:?} {stats:?} {rewards:?}");
        }
    }
}

#[test]
fn normalisation_by_hand() {
    let stats = Stats { count: 2, mean: 2.0, std: 4.0 };
    let apply = |how: Normalize| {
        let mut rewards = [-2.0_f32, 6.0];
        how.apply(&mut rewards, &stats);
        rewards
    };
    assert_eq!(apply(Normalize::None), [-2.0, 6.0]);
    assert_eq!(apply(Normalize::Std), [-0.5, 1.5]);
    assert_eq!(apply(Normalize::Standard), [-1.0, 1.0]);
}

proptest! {
    #[test]
    fn vocabulary_rewards_are_never_above_zero(
        rows in proptest::collection::vec((proptest::collection::vec(-300.0_f32..300.0, 1..40), any::<usize>()), 0..20)
    ) {
        let scores = vocab_scores(&rows);
        prop_assert!(scores.is_finite());
        for kind in [RewardKind::Advantage, RewardKind::CenteredLogit] {
            let rewards = scores.rewards(kind);
            prop_assert_eq!(rewards.len(), rows.len());
            prop_assert!(rewards.iter().all(|r| *r <= 0.0 && r.is_finite()));
        }
    }

    #[test]
    fn rewards_are_one_a_token(logit in proptest::collection::vec(-1e3_f32..1e3, 0..30)) {
        let scores = scalar_scores(&logit);
        for kind in KINDS.into_iter().filter(|kind| HeadKind::QScalar.gives(*kind)) {
            prop_assert_eq!(scores.rewards(kind).len(), logit.len());
        }
        let outcome = scores.rewards(RewardKind::Outcome);
        prop_assert_eq!(outcome.last(), logit.last());
        prop_assert!(outcome.iter().rev().skip(1).all(|r| *r == 0.0));
    }

    #[test]
    fn stats_agree_with_plain_sums(values in proptest::collection::vec(-1e4_f32..1e4, 1..200)) {
        let stats = Stats::of(values.iter());
        let n = values.len() as f64;
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let squares: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let variance = (squares / n - (sum / n).powi(2)).max(0.0);
        prop_assert_eq!(stats.count, values.len());
        prop_assert!((stats.mean - sum / n).abs() <= 1e-9 * (1.0 + stats.mean.abs()));
        prop_assert!((stats.std.powi(2) - variance).abs() <= 1e-9 * squares.max(1.0));
    }

    #[test]
    fn standardised_rewards_have_mean_0_and_deviation_1(values in proptest::collection::vec(-1e3_f32..1e3, 2..100)) {
        let stats = Stats::of(values.iter());
        prop_assume!(stats.std > 1e-2);
        let mut rewards = values.clone();
        Normalize::Standard.apply(&mut rewards, &stats);
        let after = Stats::of(rewards.iter());
        prop_assert!(after.mean.abs() < 1e-4, "{:?}", after);
        prop_assert!((after.std - 1.0).abs() < 1e-4, "{:?}", after);
    }
}
