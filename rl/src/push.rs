//! What the tokens of a rollout are pushed by: from rewards to advantages, as each algorithm has it.

use qrm_model::reward::{Normalize, Stats};

use crate::rollout::Rollout;
use crate::settings::{Algorithm, Settings};
use crate::signal::{end_by_mean, gae, group_advantages, normalize, q_advantages, returns};

/// `[T]` of each answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// What a token's log probability is pushed by.
    pub advantages: Vec<Vec<f32>>,
    /// log π of the policy that sampled.
    pub old: Vec<Vec<f32>>,
    /// log π of the reference.
    pub reference: Vec<Vec<f32>>,
    /// What the critic should have said; empty without one.
    pub returns: Vec<Vec<f32>>,
    /// What it said.
    pub values: Vec<Vec<f32>>,
    /// Mean estimate of KL(π ‖ π_ref) of a token, as `--kl` has it.
    pub kl: f64,
}

impl Push {
    /// `old`, `reference` and, with a critic, `values` are of the rollout's answers; groups of `group` answers follow one another.
    pub fn new(
        settings: &Settings,
        rollout: &Rollout,
        old: Vec<Vec<f32>>,
        reference: Vec<Vec<f32>>,
        values: Vec<Vec<f32>>,
        group: usize,
    ) -> Self {
        let s = settings;
        let is_immediate = s.credit.is_immediate(s.algorithm, &rollout.reward);
        let mut rewards = rollout.rewards.clone();
        scale(&mut rewards, &rollout.reward, s.normalize);
        if s.end_by_mean && is_immediate {
            // An answer that was cut off has no end: its last token is one like the others.
            let each = rewards.iter_mut().zip(&rollout.answers).filter(|(_, answer)| answer.finished);
            each.for_each(|(r, _)| end_by_mean(r));
        }
        let kl: Vec<Vec<f32>> = old
            .iter()
            .zip(&reference)
            .map(|(old, from)| old.iter().zip(from).map(|(p, q)| s.kl.of(*p, *q)).collect())
            .collect();
        // GRPO has it in the loss.
        if s.algorithm != Algorithm::Grpo {
            for (reward, kl) in rewards.iter_mut().flatten().zip(kl.iter().flatten()) {
                *reward -= s.kl_coef as f32 * kl;
            }
        }
        let kl = Stats::of(kl.iter().flatten()).mean;
        let mut push = Self { advantages: Vec::new(), old, reference, returns: Vec::new(), values, kl };
        match s.algorithm {
            Algorithm::Grpo => {
                let each = group_advantages(&scores(s, rollout), group).into_iter().zip(&rewards);
                push.advantages = each.map(|(a, r)| vec![a; r.len()]).collect();
            }
            Algorithm::Ppo if is_immediate => {
                let value_std = Stats::of(push.values.iter().flatten()).std;
                let of = |(r, v): (&Vec<f32>, &Vec<f32>)| q_advantages(r, v, s.critic_weight, value_std);
                push.advantages = rewards.iter().zip(&push.values).map(of).collect();
                // V(s) is what Q(s, ·) is on average, so the rewards are what the critic learns.
                push.returns = rewards;
            }
            Algorithm::Ppo => {
                let each = rewards.iter().zip(&push.values).map(|(r, v)| gae(r, v, s.gamma, s.lambda));
                (push.advantages, push.returns) = each.unzip();
                if s.whiten {
                    normalize(&mut push.advantages, Normalize::Standard);
                }
            }
            Algorithm::Reinforce if is_immediate => push.advantages = rewards,
            Algorithm::Reinforce => {
                push.advantages = rewards.iter().map(|r| returns(r, s.gamma)).collect();
            }
        }
        push
    }
}

/// A rollout's rewards before they are scaled, one number an answer: the mean of its tokens' where each is credited with its
/// own, else their sum.
pub fn scores(settings: &Settings, rollout: &Rollout) -> Vec<f32> {
    let is_immediate = settings.credit.is_immediate(settings.algorithm, &rollout.reward);
    rollout.rewards.iter().map(|rewards| score(rewards, is_immediate)).collect()
}

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
