//! From rewards to what a token is pushed by. Plain numbers; a trajectory's are `[T]`.

use clap::ValueEnum;
use qrm_model::reward::{Normalize, Stats};

/// An estimate of KL(π ‖ π_ref) from one token (Schulman, "Approximating KL divergence").
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kl {
    /// d = log π − log π_ref.
    K1,
    /// d² / 2.
    K2,
    /// e^(−d) − 1 + d.
    K3,
    /// |d|, as the released Q-RM code has it.
    #[value(alias = "paper")]
    Absolute,
}

impl Kl {
    /// Of one token.
    pub fn of(self, log_pi: f32, log_ref: f32) -> f32 {
        let d = log_pi - log_ref;
        match self {
            Self::K1 => d,
            Self::K2 => d * d / 2.0,
            Self::K3 => (-d).exp_m1() + d,
            Self::Absolute => d.abs(),
        }
    }
}

/// Mean and standard deviation of a sample, which is over one less than there are; 0 of a single one.
pub fn spread(sample: &[f32]) -> (f64, f64) {
    let Stats { mean, std, .. } = Stats::of(sample.iter());
    let n = sample.len() as f64;
    (mean, if n > 1.0 { std * (n / (n - 1.0)).sqrt() } else { 0.0 })
}

/// Scales all trajectories' numbers together, as a server does those of a request.
pub fn normalize(all: &mut [Vec<f32>], how: Normalize) {
    let stats = Stats::of(all.iter().flatten());
    all.iter_mut().for_each(|numbers| how.apply(numbers, &stats));
}

/// Puts a trajectory's mean in the place of its last reward: what an end of sequence is worth is not a matter of the token
/// (REINFORCE in the paper).
pub fn end_by_mean(rewards: &mut [f32]) {
    let mean = Stats::of(rewards.iter()).mean;
    if let Some(end) = rewards.last_mut() {
        *end = mean as f32;
    }
}

/// `G_t = r_t + γ G_{t+1}`.
pub fn returns(rewards: &[f32], gamma: f64) -> Vec<f32> {
    let mut sum = 0.0;
    let mut all: Vec<f32> = rewards
        .iter()
        .rev()
        .map(|r| {
            sum = f64::from(*r) + gamma * sum;
            sum as f32
        })
        .collect();
    all.reverse();
    all
}

/// Generalised advantages (arXiv 1506.02438) of a trajectory that ends: `A_t = δ_t + γ λ A_{t+1}`,
/// `δ_t = r_t + γ V_{t+1} − V_t`, and the returns `A_t + V_t` that the critic learns.
pub fn gae(rewards: &[f32], values: &[f32], gamma: f64, lambda: f64) -> (Vec<f32>, Vec<f32>) {
    let (mut next_value, mut next) = (0.0, 0.0);
    let mut advantages = vec![0.0; rewards.len()];
    for t in (0..rewards.len()).rev() {
        let value = f64::from(values[t]);
        let delta = f64::from(rewards[t]) + gamma * next_value - value;
        next = delta + gamma * lambda * next;
        advantages[t] = next as f32;
        next_value = value;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, returns)
}

/// Q-RM's own: `A_t = r̂_t − c V(s_t) / σ_V`, with σ_V over the whole rollout; r̂ is an advantage up to scale already.
pub fn q_advantages(rewards: &[f32], values: &[f32], weight: f64, value_std: f64) -> Vec<f32> {
    let scale = if value_std > 1e-8 { weight / value_std } else { 0.0 };
    rewards.iter().zip(values).map(|(r, v)| (f64::from(*r) - scale * f64::from(*v)) as f32).collect()
}

/// GRPO's (arXiv 2402.03300): each answer's score against its group, `(s − mean) / (std + 1e-4)`; groups follow one another.
pub fn group_advantages(scores: &[f32], group: usize) -> Vec<f32> {
    let of = |group: &[f32]| -> Vec<f32> {
        let Stats { mean, std, .. } = Stats::of(group.iter());
        group.iter().map(|s| ((f64::from(*s) - mean) / (std + 1e-4)) as f32).collect()
    };
    scores.chunks(group.max(1)).flat_map(of).collect()
}

/// Pass@k from n answers of which c are right, unbiased: `1 − C(n−c, k) / C(n, k)` (arXiv 2107.03374).
pub fn pass_at(n: usize, c: usize, k: usize) -> f64 {
    if n < c + k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-5 * w.abs().max(1.0), "{got:?}, {want:?}");
        }
    }

    #[test]
    fn returns_and_gae_by_hand() {
        close(&returns(&[1.0, 0.0, 2.0], 0.5), &[1.5, 1.0, 2.0]);
        // δ = (1 + .9·.4 − .5, 0 + .9·.3 − .4, 2 − .3) = (.86, −.13, 1.7); λ = .8: γλ = .72.
        let (advantages, targets) = gae(&[1.0, 0.0, 2.0], &[0.5, 0.4, 0.3], 0.9, 0.8);
        close(&advantages, &[0.86 + 0.72 * (-0.13 + 0.72 * 1.7), -0.13 + 0.72 * 1.7, 1.7]);
        close(&targets, &[0.86 + 0.72 * (-0.13 + 0.72 * 1.7) + 0.5, -0.13 + 0.72 * 1.7 + 0.4, 2.0]);
        // With λ = 1 and no critic, advantages are returns.
        close(&gae(&[1.0, 0.0, 2.0], &[0.0; 3], 0.5, 1.0).0, &[1.5, 1.0, 2.0]);
        assert!(gae(&[], &[], 1.0, 1.0).0.is_empty());
    }

    #[test]
    fn scales() {
        let mut all = vec![vec![1.0, 2.0], vec![3.0, 6.0]];
        let std = 3.5f64.sqrt(); // mean 3, squares 4 + 1 + 0 + 9
        normalize(&mut all, Normalize::Standard);
        close(&all.concat(), &[-2.0 / std, -1.0 / std, 0.0, 3.0 / std]);
        let mut all = vec![vec![1.0, 2.0], vec![3.0, 6.0]];
        normalize(&mut all, Normalize::Std);
        close(&all.concat(), &[1.0 / std, 2.0 / std, 3.0 / std, 6.0 / std]);
        let mut same = vec![vec![5.0; 3]];
        normalize(&mut same, Normalize::Standard);
        close(&same[0], &[0.0; 3]);
        let mut rewards = [1.0, 3.0, 11.0];
        end_by_mean(&mut rewards);
        assert_eq!(rewards, [1.0, 3.0, 5.0]);
        let mut alone = [7.0];
        end_by_mean(&mut alone);
        assert_eq!(alone, [7.0]);
    }

    #[test]
    fn kl_estimates() {
        let (p, q) = ((0.5f32).ln(), (0.25f32).ln());
        let d = 2f64.ln();
        let of = |kl: Kl| kl.of(p, q);
        close(&[of(Kl::K1), of(Kl::K2), of(Kl::K3), of(Kl::Absolute)], &[d, d * d / 2.0, 0.5 - 1.0 + d, d]);
        close(&[Kl::K1.of(q, p), Kl::Absolute.of(q, p), Kl::K3.of(q, p)], &[-d, d, 2.0 - 1.0 - d]);
        assert!(Kl::K3.of(-1.0, -1.0 - 1e-6) >= 0.0);
    }

    #[test]
    fn groups_and_the_paper_s_advantage() {
        let std = 0.5 + 1e-4;
        close(&group_advantages(&[1.0, 0.0, 1.0, 1.0], 2), &[0.5 / std, -0.5 / std, 0.0, 0.0]);
        close(&q_advantages(&[1.0, -1.0], &[2.0, 4.0], 0.01, 2.0), &[0.99, -1.02]);
        close(&q_advantages(&[1.0], &[2.0], 0.01, 0.0), &[1.0]);
    }

    #[test]
    fn pass_at_k_is_unbiased() {
        assert_eq!(pass_at(4, 0, 2), 0.0);
        assert_eq!(pass_at(4, 4, 2), 1.0);
        // Of 4 answers 1 is right: a pair has it in 3 of 6 cases.
        assert!((pass_at(4, 1, 2) - 0.5).abs() < 1e-12);
        assert!((pass_at(10, 3, 1) - 0.3).abs() < 1e-12);
    }
}
