//! AdamW (arXiv 1711.05101), clipping by the global norm, and learning-rate schedules.

use candle_core::Tensor;
use qrm_model::training::{Gradients, Parameters};
use rayon::prelude::*;

/// The numbers of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// ε.
    pub eps: f64,
    /// λ, on weights of two or more dimensions: not on norms and biases.
    pub weight_decay: f64,
    /// The gradient's global norm is cut to this; 0 = never.
    pub max_grad_norm: f64,
}

/// First and second moments of every variable, in the order of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    settings: Settings,
    /// Updates made.
    pub step: usize,
    /// `(m, v)` of each variable.
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
}

/// What stops a run.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A variable that no pass reached: it would silently stay as it is.
    #[error("no gradient reached {0}")]
    Untrained(String),
    /// NaN or infinite.
    #[error("the gradient's norm is {0}")]
    NotFinite(f64),
    /// The numeric layer failed.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

/// The gradient of every variable as plain numbers. A variable without one is an error.
pub fn plain(parameters: &Parameters, gradients: &Gradients) -> Result<Vec<Vec<f32>>, StepError> {
    let named = parameters.iter().zip(gradients.iter());
    let plain = named.map(|((name, _), gradient)| {
        let gradient = gradient.ok_or_else(|| StepError::Untrained(name.to_owned()))?;
        Ok(gradient.flatten_all()?.to_vec1()?)
    });
    plain.collect()
}

impl AdamW {
    /// Moments of zero.
    pub fn new(settings: Settings, parameters: &Parameters) -> Self {
        let zeros = |n| (vec![0.0; n], vec![0.0; n]);
        let moments = parameters.iter().map(|(_, var)| zeros(var.elem_count())).collect();
        Self { settings, step: 0, moments }
    }

    /// One update with learning rate `lr` and the gradient of every variable; gives their norm before clipping.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &[Vec<f32>],
        lr: f64,
    ) -> Result<f64, StepError> {
        let squares = |g: &Vec<f32>| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        let norm = gradients.par_iter().map(squares).collect::<Vec<_>>().iter().sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(StepError::NotFinite(norm));
        }
        let s = self.settings;
        let clip = if s.max_grad_norm > 0.0 && norm > s.max_grad_norm { s.max_grad_norm / norm } else { 1.0 };
        self.step += 1;
        let (b1, b2) = s.betas;
        let rate = lr / (1.0 - b1.powi(self.step as i32));
        let unbias = 1.0 / (1.0 - b2.powi(self.step as i32));
        for (((_, var), g), (m, v)) in parameters.iter().zip(gradients).zip(&mut self.moments) {
            let decay = if var.rank() > 1 { 1.0 - lr * s.weight_decay } else { 1.0 };
            let mut values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let each = values.par_iter_mut().zip(g).zip(m.par_iter_mut().zip(v.par_iter_mut()));
            each.with_min_len(4096).for_each(|((x, g), (m, v))| {
                let g = f64::from(*g) * clip;
                let (m1, v1) = (b1 * f64::from(*m) + (1.0 - b1) * g, b2 * f64::from(*v) + (1.0 - b2) * g * g);
                (*m, *v) = (m1 as f32, v1 as f32);
                *x = (f64::from(*x) * decay - rate * m1 / ((v1 * unbias).sqrt() + s.eps)) as f32;
            });
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        Ok(norm)
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Decay {
    /// It stays.
    Constant,
    /// Straight to zero.
    Linear,
    /// Along a half cosine to zero.
    Cosine,
}

/// The learning rate of every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest.
    pub peak: f64,
    /// Steps that rise to it.
    pub warmup: usize,
    /// Steps in all.
    pub steps: usize,
    /// What comes after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let along = (step - self.warmup) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64;
        let along = along.min(1.0);
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - along,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * along).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_rise_and_fall() {
        let s = |decay| Schedule { peak: 2.0, warmup: 4, steps: 14, decay };
        assert_eq!([0, 3, 4].map(|i| s(Decay::Linear).at(i)), [0.5, 2.0, 2.0]);
        assert_eq!([9, 14, 20].map(|i| s(Decay::Linear).at(i)), [1.0, 0.0, 0.0]);
        assert!((s(Decay::Cosine).at(9) - 1.0).abs() < 1e-12 && s(Decay::Cosine).at(14) < 1e-12);
        assert_eq!(s(Decay::Constant).at(13), 2.0);
    }
}
