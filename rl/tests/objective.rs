//! The losses and their gradients against f64, and what an update does to a policy.

use candle_core::{Device, Tensor, Var};
use qrm_model::Trajectory;
use qrm_rl::learner::Learner;
use qrm_rl::objective::{Outcome, clipped, kl, reinforce, value};
use qrm_trainer::optimizer::Settings;

const Z: [f64; 4] = [1.2, -0.3, 2.0, 0.5];
const LSE: [f64; 4] = [1.5, 0.9, 2.1, 3.0];
const A: [f64; 4] = [1.0, -2.0, 0.5, -0.25];
/// Ratios below, above and inside of 1 ± 0.2, with both signs of the advantage.
const OLD: [f64; 4] = [-0.9, -1.8, -0.05, -2.5];
const TOTAL: f64 = 3.0;

fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Loss and `∂/∂outputs` of `[R, 3]` made of Z and LSE.
fn of(loss: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> (f64, Vec<f64>) {
    let rows: Vec<f32> = Z.iter().zip(LSE).flat_map(|(z, l)| [*z as f32, l as f32, 0.5]).collect();
    let outputs = Var::from_tensor(&Tensor::from_vec(rows, (4, 3), &Device::Cpu).unwrap()).unwrap();
    let loss = loss(outputs.as_tensor()).unwrap();
    let gradient = loss.backward().unwrap().remove(&outputs).unwrap();
    let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
    (f64::from(loss.to_scalar::<f32>().unwrap()), gradient.into_iter().map(f64::from).collect())
}

/// The same by central differences of an f64 loss of log π.
fn reference(loss: impl Fn(&[f64; 4]) -> f64) -> (f64, Vec<f64>) {
    let log_pi = |i: usize| Z[i] - LSE[i];
    let at: [f64; 4] = std::array::from_fn(log_pi);
    let mut gradient = Vec::new();
    for i in 0..4 {
        let shifted = |by: f64| {
            let mut x = at;
            x[i] += by;
            loss(&x)
        };
        let slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
        gradient.extend([slope, -slope, 0.0]);
    }
    (loss(&at), gradient)
}

fn same((loss, gradient): (f64, Vec<f64>), (want, slopes): (f64, Vec<f64>)) {
    assert!((loss - want).abs() < 1e-5 * want.abs().max(1.0), "{loss}, {want}");
    for (g, w) in gradient.iter().zip(&slopes) {
        assert!((g - w).abs() < 1e-5 * w.abs().max(1.0), "{gradient:?}, {slopes:?}");
    }
}

#[test]
fn reinforce_is_its_formula() {
    let got = of(|outputs| reinforce(outputs, &f32s(&A), TOTAL));
    same(got, reference(|log_pi| -log_pi.iter().zip(A).map(|(l, a)| l * a).sum::<f64>() / TOTAL));
}

#[test]
fn the_clipped_surrogate_is_its_formula() {
    let got = of(|outputs| {
        let outcome = Outcome::of(outputs, &f32s(&OLD), 0.2)?;
        assert_eq!((outcome.tokens, outcome.clipped), (4, 2));
        clipped(outputs, &f32s(&A), &f32s(&OLD), 0.2, TOTAL)
    });
    let want = reference(|log_pi| {
        let term = |i: usize| {
            let ratio = (log_pi[i] - OLD[i]).exp();
            (ratio * A[i]).min(ratio.clamp(0.8, 1.2) * A[i])
        };
        -(0..4).map(term).sum::<f64>() / TOTAL
    });
    same(got, want);
}

#[test]
fn the_kl_penalty_is_its_formula() {
    let got = of(|outputs| kl(outputs, &f32s(&OLD), TOTAL));
    let want = reference(|log_pi| {
        let term = |i: usize| (OLD[i] - log_pi[i]).exp() - 1.0 - (OLD[i] - log_pi[i]);
        (0..4).map(term).sum::<f64>() / TOTAL
    });
    same(got, want);
}

#[test]
fn the_critic_s_loss_is_its_formula() {
    let (v, old, returns) = ([0.5, 1.0, -1.0, 2.0], [0.4, 0.2, -1.1, 2.5], [1.0, 0.0, -1.0, 2.2]);
    let outputs = Var::from_tensor(&Tensor::from_vec(f32s(&v), (4, 1), &Device::Cpu).unwrap()).unwrap();
    let loss = value(outputs.as_tensor(), &f32s(&returns), &f32s(&old), 0.2, TOTAL).unwrap();
    let formula = |v: &[f64; 4]| {
        let term = |i: usize| {
            let near = old[i] + (v[i] - old[i]).clamp(-0.2, 0.2);
            (v[i] - returns[i]).powi(2).max((near - returns[i]).powi(2))
        };
        (0..4).map(term).sum::<f64>() / (2.0 * TOTAL)
    };
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - formula(&v)).abs() < 1e-6);
    let gradient = loss.backward().unwrap().remove(&outputs).unwrap();
    let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
    for (i, g) in gradient.iter().enumerate() {
        let shifted = |by: f64| {
            let mut v = v;
            v[i] += by;
            formula(&v)
        };
        let slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
        assert!((f64::from(*g) - slope).abs() < 1e-5, "{gradient:?}");
    }
}

/// What is good becomes likelier and what is bad less so, both below one prompt in one batch.
#[test]
fn an_update_goes_the_right_way() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen2");
    let settings = Settings { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let mut policy = Learner::policy(&dir, settings, 64).unwrap();
    let answer = |ids: [u32; 5]| Trajectory { prompt_ids: [7, 8, 9].into(), response_ids: ids.into() };
    let answers = [answer([10, 11, 12, 13, 2]), answer([10, 21, 22, 23, 2]), answer([30, 31, 32, 33, 2])];
    let sum = |policy: &Learner| -> Vec<f32> {
        policy.log_probs(&answers).unwrap().iter().map(|l| l.iter().sum()).collect()
    };
    let before = sum(&policy);
    for _ in 0..3 {
        policy
            .update(&answers, 1e-3, |places, outputs| {
                let advantages: Vec<f32> = places.flat_map(|i| [[1.0, -1.0, 0.0][i]; 5]).collect();
                reinforce(outputs, &advantages, 15.0)
            })
            .unwrap();
    }
    let after = sum(&policy);
    assert!(after[0] > before[0] + 0.1 && after[1] < before[1] - 0.1, "{before:?}, {after:?}");
}
