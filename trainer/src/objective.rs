//! The losses, over what the head says of a batch's response tokens (Q-RM, arXiv 2505.23363, and the reward models it
//! compares with).

use candle_core::{Device, Result, Tensor};

use crate::credit::ahead;
use crate::data::Example;

/// What is trained for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Cross entropy of the answers: mean of `−log φ(a_t | s_t)` over their tokens.
    Sft,
    /// `−log σ(β (mean_t Z(τ^w) − mean_t Z(τ^l)) − γ)`, plus `sft` times the mean of `−log φ` over τ^w: the loss sees no
    /// logsumexp, and left alone lets `log φ` drift.
    Qrm(Preference),
    /// Bradley-Terry on the scalar at the last token: `−log σ(Z_T(τ^w) − Z_T(τ^l))`; β and γ as given.
    Outcome(Preference),
    /// `(tanh Z − label)²` at the last token of each step.
    Step,
    /// `−log σ(β Σ_t (log π/π_ref)(τ^w) − β Σ_t (log π/π_ref)(τ^l))` (DPO, arXiv 2305.18290).
    Dpo(Preference),
}

/// The numbers of a preference loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    /// β.
    pub beta: f64,
    /// γ, the margin aimed at.
    pub gamma: f64,
    /// The share of pairs taken to be labelled the wrong way round.
    pub label_smoothing: f64,
    /// The share of the chosen answer's cross entropy in the loss of a vocabulary head.
    pub sft: f64,
}

/// What a batch came out as; sums, so that micro-batches add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Pairs.
    pub pairs: usize,
    /// Pairs whose chosen answer scores higher; ties count half.
    pub right: f64,
    /// Σ (score of chosen − score of rejected).
    pub margin: f64,
}

impl Outcome {
    /// Adds another batch.
    pub fn add(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.right += other.right;
        self.margin += other.margin;
    }
}

impl Objective {
    /// What a loss is divided by: pairs, tokens or labelled steps.
    pub fn weight(&self, example: &Example) -> f64 {
        match self {
            Self::Sft => example.response_tokens() as f64,
            Self::Step => example.steps.len() as f64,
            Self::Qrm(_) | Self::Outcome(_) | Self::Dpo(_) => 1.0,
        }
    }

    /// The share of a step's loss that these examples have, a scalar. `outputs` are the head's, `[R, 3]` or `[R, 1]`;
    /// `total` is the weight of all examples of the step.
    pub fn loss(&self, examples: &[&Example], outputs: &Tensor, total: f64) -> Result<(Tensor, Outcome)> {
        let z = outputs.narrow(1, 0, 1)?;
        match self {
            Self::Sft => {
                let log_phi = (z - outputs.narrow(1, 1, 1)?)?;
                Ok(((log_phi.sum_all()? * (-1.0 / total))?, Outcome::default()))
            }
            Self::Step => {
                let labels = steps(examples);
                let rows: Vec<u32> = labels.iter().map(|(row, _)| *row as u32).collect();
                let labels: Vec<f32> = labels.iter().map(|(_, label)| *label).collect();
                let z = z.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?.flatten_all()?;
                let error = (z.tanh()? - Tensor::new(labels, &Device::Cpu)?)?;
                Ok(((error.sqr()?.sum_all()? / total)?, Outcome::default()))
            }
            Self::Qrm(p) => {
                let (loss, outcome) = p.loss(&pooled(examples, &z, Pool::Mean)?, None, total)?;
                if p.sft == 0.0 {
                    return Ok((loss, outcome));
                }
                let log_phi = (z - outputs.narrow(1, 1, 1)?)?;
                let chosen = pooled(examples, &log_phi, Pool::Mean)?.reshape(((), 2))?.narrow(1, 0, 1)?;
                Ok(((loss + (chosen.sum_all()? * (-p.sft / total))?)?, outcome))
            }
            Self::Outcome(p) => p.loss(&pooled(examples, &z, Pool::Last)?, None, total),
            Self::Dpo(p) => {
                let log_phi = (z - outputs.narrow(1, 1, 1)?)?;
                let reference: Vec<f32> = examples.iter().flat_map(|e| e.reference.iter().copied()).collect();
                p.loss(&pooled(examples, &log_phi, Pool::Sum)?, Some(reference), total)
            }
        }
    }
}

impl Preference {
    /// Over the scores `[2 · pairs]`, chosen first, minus the reference's where there is one.
    fn loss(&self, scores: &Tensor, reference: Option<Vec<f32>>, total: f64) -> Result<(Tensor, Outcome)> {
        let scores = match reference {
            None => scores.clone(),
            Some(reference) => (scores - Tensor::new(reference, &Device::Cpu)?)?,
        };
        let scores = scores.reshape(((), 2))?;
        let margin = (scores.narrow(1, 0, 1)? - scores.narrow(1, 1, 1)?)?.flatten_all()?;
        let h = ((&margin * self.beta)? - self.gamma)?;
        let mut loss = softplus(&h.neg()?)?;
        if self.label_smoothing > 0.0 {
            let flipped = softplus(&h)?;
            loss = ((loss * (1.0 - self.label_smoothing))? + (flipped * self.label_smoothing)?)?;
        }
        let margins: Vec<f32> = margin.to_vec1()?;
        let outcome = Outcome {
            pairs: margins.len(),
            right: margins.iter().map(|m| ahead(f64::from(*m), 0.0)).sum(),
            margin: margins.iter().map(|m| f64::from(*m)).sum(),
        };
        Ok(((loss.sum_all()? / total)?, outcome))
    }
}

/// `log(1 + e^x)` without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

#[derive(Clone, Copy)]
enum Pool {
    Mean,
    Sum,
    Last,
}

/// One number per answer from its tokens' `z [R, 1]`, `[answers]`: a small matrix times z, which autograd follows.
fn pooled(examples: &[&Example], z: &Tensor, pool: Pool) -> Result<Tensor> {
    let lengths: Vec<usize> =
        examples.iter().flat_map(|e| e.answers.iter().map(|t| t.response_ids.len())).collect();
    let rows = lengths.iter().sum::<usize>();
    let mut matrix = vec![0.0f32; lengths.len() * rows];
    let mut at = 0;
    for (row, length) in matrix.chunks_exact_mut(rows.max(1)).zip(&lengths) {
        match pool {
            Pool::Mean => row[at..at + length].fill(1.0 / *length as f32),
            Pool::Sum => row[at..at + length].fill(1.0),
            Pool::Last => row[at + length - 1] = 1.0,
        }
        at += length;
    }
    Tensor::from_vec(matrix, (lengths.len(), rows), &Device::Cpu)?.matmul(z)?.flatten_all()
}

/// `(row of the outputs, label)` of every labelled step.
fn steps(examples: &[&Example]) -> Vec<(usize, f32)> {
    let mut at = 0;
    let mut all = Vec::new();
    for example in examples {
        all.extend(example.steps.iter().map(|(token, label)| (at + token, *label)));
        at += example.response_tokens();
    }
    all
}
