//! The losses, over what a head says of a batch's response tokens.

use candle_core::{Device, Result, Tensor};

/// What a batch came out as; sums over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose ratio was outside of `1 ± ε`.
    pub clipped: usize,
    /// Σ (log π_old − log π).
    pub moved: f64,
}

impl Outcome {
    /// Adds another batch.
    pub fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.clipped += other.clipped;
        self.moved += other.moved;
    }
}

/// `−Σ A_t log π(a_t|s_t) / total`. `outputs` are a vocabulary head's, `[R, 2]`; `advantages` `[R]`.
pub fn reinforce(outputs: &Tensor, advantages: &[f32], total: f64) -> Result<Tensor> {
    (log_pi(outputs)? * column(advantages)?)?.sum_all()? * (-1.0 / total)
}

/// PPO's clipped surrogate (arXiv 1707.06347), `−Σ min(ρ A, clip(ρ, 1 ± ε) A) / total` with `ρ = π / π_old`; `old` are the
/// log probabilities `[R]` of the policy that sampled.
pub fn clipped(
    outputs: &Tensor,
    advantages: &[f32],
    old: &[f32],
    clip: f64,
    total: f64,
) -> Result<(Tensor, Outcome)> {
    let distance = (log_pi(outputs)? - column(old)?)?;
    let ratio = distance.exp()?;
    let advantages = column(advantages)?;
    let inside = ratio.clamp(1.0 - clip, 1.0 + clip)?;
    let surrogate = (&ratio * &advantages)?.minimum(&(inside * &advantages)?)?;
    let ratios: Vec<f32> = ratio.flatten_all()?.to_vec1()?;
    let moved: Vec<f32> = distance.flatten_all()?.to_vec1()?;
    let outcome = Outcome {
        tokens: ratios.len(),
        clipped: ratios.iter().filter(|r| (f64::from(**r) - 1.0).abs() > clip).count(),
        moved: -moved.iter().map(|d| f64::from(*d)).sum::<f64>(),
    };
    Ok(((surrogate.sum_all()? * (-1.0 / total))?, outcome))
}

/// Half the squared error of a critic, `Σ max((V − G)², (V_old + clip(V − V_old, ±ε) − G)²) / (2 total)`. `outputs` are a
/// scalar head's, `[R, 1]`; `returns` and `old` `[R]`.
pub fn value(outputs: &Tensor, returns: &[f32], old: &[f32], clip: f64, total: f64) -> Result<Tensor> {
    let (returns, old) = (column(returns)?, column(old)?);
    let near = (&old + (outputs - &old)?.clamp(-clip, clip)?)?;
    let error = (outputs - &returns)?.sqr()?.maximum(&(near - &returns)?.sqr()?)?;
    error.sum_all()? * (0.5 / total)
}

/// `[R, 1]`.
fn log_pi(outputs: &Tensor) -> Result<Tensor> {
    outputs.narrow(1, 0, 1)? - outputs.narrow(1, 1, 1)?
}

fn column(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, (values.len(), 1), &Device::Cpu)
}

/// `Σ (π_ref/π − 1 − log π_ref/π) / total`, GRPO's penalty; `reference` `[R]`.
pub fn kl(outputs: &Tensor, reference: &[f32], total: f64) -> Result<Tensor> {
    let distance = (column(reference)? - log_pi(outputs)?)?;
    ((distance.exp()? - 1.0)? - distance)?.sum_all()? / total
}
