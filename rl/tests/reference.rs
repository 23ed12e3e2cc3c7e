//! Advantages, returns, KL and losses as PyTorch has them (`reference.py` wrote `pytorch.json`), to 1e-5.

use std::time::Duration;

use candle_core::{Device, Tensor, Var};
use clap::ValueEnum;
use qrm_model::reward::Normalize;
use qrm_rl::objective::{clipped, entropy, kl, reinforce, value};
use qrm_rl::push::Push;
use qrm_rl::rollout::{Answer, Rollout};
use qrm_rl::settings::{Algorithm, Credit, Settings};
use qrm_rl::signal::Kl;
use qrm_trainer::optimizer::{Decay, Settings as Adam};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    group: usize,
    dense: Vec<Vec<f32>>,
    sparse: Vec<Vec<f32>>,
    right: Vec<Vec<f32>>,
    steps: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    old: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    pushes: Vec<Case>,
    outputs: Vec<f32>,
    advantages: Vec<f32>,
    critic: Critic,
    losses: Losses,
}

#[derive(Deserialize)]
struct Case {
    algorithm: String,
    reward: String,
    normalize: Normalize,
    kl_form: String,
    advantages: Vec<Vec<f32>>,
    returns: Vec<Vec<f32>>,
    kl: f64,
}

#[derive(Deserialize)]
struct Critic {
    values: Vec<f32>,
    targets: Vec<f32>,
    old: Vec<f32>,
}

#[derive(Deserialize)]
struct Losses {
    reinforce: Loss,
    clipped: Loss,
    kl: Loss,
    entropy: Loss,
    value: Loss,
    value_clipped: Loss,
}

#[derive(Deserialize)]
struct Loss {
    loss: f64,
    gradient: Vec<f32>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("pytorch.json")).unwrap()
}

fn settings(algorithm: Algorithm, case: &Case) -> Settings {
    Settings {
        algorithm,
        critic: None,
        output: "".into(),
        steps: 1,
        prompts: 1,
        seed: 0,
        questions: String::new(),
        validation: String::new(),
        started: String::new(),
        judge: String::new(),
        normalize: case.normalize,
        credit: Credit::Auto,
        end_by_mean: algorithm == Algorithm::Reinforce,
        kl_coef: 0.05,
        kl: Kl::from_str(&case.kl_form, true).unwrap(),
        clip: 0.2,
        value_clip: 0.0,
        entropy_coef: 0.0,
        gamma: 0.9,
        lambda: 0.8,
        whiten: case.algorithm == "ppo, whitened",
        critic_weight: 0.01,
        epochs: 1,
        minibatches: 1,
        lr: (0.0, 0.0),
        warmup: 0,
        decay: Decay::Constant,
        optimizer: Adam { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 },
        micro_batch_tokens: 1,
        eval_every: 1,
        eval_samples: 0,
        keep_best: false,
        save_every: 0,
        resume: false,
        new_reward_model: false,
    }
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-5 * w.abs().max(1.0), "{what}: {got:?}, {want:?}");
    }
}

/// Answers of these rewards that all came to their end, or did not.
fn rollout(rewards: &[Vec<f32>], reward: &str, finished: bool) -> Rollout {
    let answer = |rewards: &Vec<f32>| Answer {
        prompt_ids: [0].into(),
        response_ids: vec![0; rewards.len()].into(),
        is_right: false,
        finished,
    };
    Rollout {
        answers: rewards.iter().map(answer).collect(),
        rewards: rewards.to_vec(),
        reward: reward.into(),
        model_version: String::new(),
        sampling: Duration::ZERO,
        scoring: Duration::ZERO,
        waiting: Duration::ZERO,
    }
}

#[test]
fn an_answer_that_was_cut_off_has_no_end() {
    let r = reference();
    let case = r.pushes.iter().find(|c| c.algorithm == "reinforce" && c.reward == "logit").unwrap();
    let ends = settings(Algorithm::Reinforce, case);
    let keeps = Settings { end_by_mean: false, ..ends.clone() };
    let push = |settings: &Settings, finished: bool| {
        let rollout = rollout(&r.dense, "logit", finished);
        Push::new(settings, &rollout, r.old.clone(), r.reference.clone(), Vec::new(), r.group).advantages
    };
    assert_eq!(push(&ends, false), push(&keeps, true));
    assert_ne!(push(&ends, true), push(&keeps, true));
}

#[test]
fn tokens_are_pushed_as_in_pytorch() {
    let r = reference();
    assert_eq!(r.pushes.len(), 4 * 3 * (2 * 4 + 3));
    for case in &r.pushes {
        let (algorithm, values) = match case.algorithm.as_str() {
            "reinforce" => (Algorithm::Reinforce, Vec::new()),
            "ppo" | "ppo, whitened" => (Algorithm::Ppo, r.values.clone()),
            _ => (Algorithm::Grpo, Vec::new()),
        };
        let rewards = match case.reward.as_str() {
            "outcome" => &r.sparse,
            "verifier" => &r.right,
            "step" => &r.steps,
            _ => &r.dense,
        };
        let rollout = rollout(rewards, &case.reward, true);
        let settings = settings(algorithm, case);
        let push = Push::new(&settings, &rollout, r.old.clone(), r.reference.clone(), values, r.group);
        let what = format!("{} {} {:?} {}", case.algorithm, case.reward, case.normalize, case.kl_form);
        close(&what, &push.advantages.concat(), &case.advantages.concat());
        close(&what, &push.returns.concat(), &case.returns.concat());
        assert!((push.kl - case.kl).abs() < 1e-5, "{what}: {}, {}", push.kl, case.kl);
    }
}

#[test]
fn losses_are_pytorch_s() {
    let r = reference();
    let n = r.advantages.len();
    let total = n as f64;
    let check = |what: &str, at: &[f32], of: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>, want: &Loss| {
        let at = Tensor::from_slice(at, (n, at.len() / n), &Device::Cpu).unwrap();
        let at = Var::from_tensor(&at).unwrap();
        let loss = of(at.as_tensor()).unwrap();
        let gradient = loss.backward().unwrap().remove(&at).unwrap();
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - want.loss).abs() < 1e-5, "{what}");
        close(what, &gradient, &want.gradient);
    };
    let (old, from) = (r.old.concat(), r.reference.concat());
    let (a, l, c) = (&r.advantages, &r.losses, &r.critic);
    check("reinforce", &r.outputs, &|x| reinforce(x, a, total), &l.reinforce);
    check("clipped", &r.outputs, &|x| clipped(x, a, &old, 0.2, total), &l.clipped);
    check("kl", &r.outputs, &|x| kl(x, &from, total), &l.kl);
    check("entropy", &r.outputs, &|x| entropy(x, total), &l.entropy);
    check("value", &c.values, &|x| value(x, &c.targets, &c.old, 0.0, total), &l.value);
    check("value, clipped", &c.values, &|x| value(x, &c.targets, &c.old, 0.2, total), &l.value_clipped);
}
