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
    /// Σ H(π(·|s_t)).
    pub entropy: f64,
}

impl Outcome {
    /// Of one batch; `outputs` `[R, 3]`, `old` `[R]`.
    pub fn of(outputs: &Tensor, old: &[f32], clip: f64) -> Result<Self> {
        let rows: Vec<Vec<f32>> = outputs.detach().to_vec2()?;
        let mut outcome = Self { tokens: rows.len(), ..Self::default() };
        for (row, old) in rows.iter().zip(old) {
            let distance = f64::from(row[0] - row[1] - old);
            outcome.clipped += usize::from((distance.exp() - 1.0).abs() > clip);
            outcome.moved -= distance;
            outcome.entropy += f64::from(row[2]);
        }
        Ok(outcome)
    }

    /// Of a sum: by token.
    pub fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }

    /// Adds another batch.
    pub fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.clipped += other.clipped;
        self.moved += other.moved;
        self.entropy += other.entropy;
    }
}

/// `−Σ A_t log π(a_t|s_t) / total`. `outputs` are a vocabulary head's, `[R, 3]`; `advantages` `[R]`.
pub fn reinforce(outputs: &Tensor, advantages: &[f32], total: f64) -> Result<Tensor> {
    (log_pi(outputs)? * column(advantages)?)?.sum_all()? * (-1.0 / total)
}

/// PPO's clipped surrogate (arXiv 1707.06347), `−Σ min(ρ A, clip(ρ, 1 ± ε) A) / total` with `ρ = π / π_old`; `old` are the
/// log probabilities `[R]` of the policy that sampled.
pub fn clipped(outputs: &Tensor, advantages: &[f32], old: &[f32], clip: f64, total: f64) -> Result<Tensor> {
    let ratio = (log_pi(outputs)? - column(old)?)?.exp()?;
    let advantages = column(advantages)?;
    let inside = ratio.clamp(1.0 - clip, 1.0 + clip)?;
    let surrogate = (&ratio * &advantages)?.minimum(&(inside * &advantages)?)?;
    surrogate.sum_all()? * (-1.0 / total)
}

/// Half the squared error of a critic, `Σ max((V − G)², (V_old + clip(V − V_old, ±ε) − G)²) / (2 total)`. `outputs` are a
/// scalar head's, `[R, 1]`; `returns` and `old` `[R]`. With `clip` 0 the plain `Σ (V − G)² / (2 total)`.
pub fn value(outputs: &Tensor, returns: &[f32], old: &[f32], clip: f64, total: f64) -> Result<Tensor> {
    let (returns, old) = (column(returns)?, column(old)?);
    if clip <= 0.0 {
        return (outputs - &returns)?.sqr()?.sum_all()? * (0.5 / total);
    }
    let near = (&old + (outputs - &old)?.clamp(-clip, clip)?)?;
    let error = (outputs - &returns)?.sqr()?.maximum(&(near - &returns)?.sqr()?)?;
    error.sum_all()? * (0.5 / total)
}

/// `Σ (π_ref/π − 1 − log π_ref/π) / total`, GRPO's penalty; `reference` `[R]`.
pub fn kl(outputs: &Tensor, reference: &[f32], total: f64) -> Result<Tensor> {
    let distance = (column(reference)? - log_pi(outputs)?)?;
    ((distance.exp()? - 1.0)? - distance)?.sum_all()? / total
}

/// `Σ H(π(·|s_t)) / total`.
pub fn entropy(outputs: &Tensor, total: f64) -> Result<Tensor> {
    outputs.narrow(1, 2, 1)?.sum_all()? / total
}

/// `[R, 1]`.
fn log_pi(outputs: &Tensor) -> Result<Tensor> {
    outputs.narrow(1, 0, 1)? - outputs.narrow(1, 1, 1)?
}

fn column(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, (values.len(), 1), &Device::Cpu)
}
