//! Gradients of whole models against central differences of an f64 forward, for every architecture, with and without
//! checkpointing, and for adapters.

mod common;

use candle_core::Tensor;
use common::fixture;
use qrm_kernels::{Segment, reference};
use qrm_model::checkpoint::DecoderConfig;
use qrm_model::forest::Forest;
use qrm_model::reward::HeadKind;
use qrm_model::training::{Gradients, Lora, Method};
use qrm_model::{RewardModel, Trajectory};
use std::collections::BTreeMap;

type Weights = BTreeMap<String, Vec<f64>>;

/// Two pairs of answers; each pair shares its prompt and a first token.
fn batch() -> Vec<Trajectory> {
    let t = |prompt: &[u32], response: &[u32]| Trajectory {
        prompt_ids: prompt.into(),
        response_ids: response.into(),
    };
    vec![
        t(&[5, 9, 2, 77], &[40, 41, 3]),
        t(&[5, 9, 2, 77], &[40, 300, 8, 9, 12]),
        t(&[5, 1], &[6]),
        t(&[5, 1], &[7, 8]),
    ]
}

/// `x [n, k] · wᵀ`, with the bias and the adapter there may be.
fn project(x: &[f64], w: &Weights, name: &str, k: usize, scale: f64) -> Vec<f64> {
    let mut y = reference::linear(x, &w[&format!("{name}.weight")], k);
    if let Some(bias) = w.get(&format!("{name}.bias")) {
        y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % bias.len()]);
    }
    if let Some(a) = w.get(&format!("{name}.lora_A.weight")) {
        let b = &w[&format!("{name}.lora_B.weight")];
        let down = reference::linear(x, a, k);
        let up = reference::linear(&down, b, a.len() / k);
        y.iter_mut().zip(up).for_each(|(y, u)| *y += scale * u);
    }
    y
}

fn rows(x: &[f64], d: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks(d).flat_map(f).collect()
}

/// Hidden states after the final norm, `[N, d]`.
fn decoder(
    c: &DecoderConfig,
    w: &Weights,
    ids: &[u32],
    positions: &[u32],
    segments: &[Segment],
    scale: f64,
) -> Vec<f64> {
    let (d, head) = (c.hidden_size, c.head_dim);
    let (q_heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
    let inv_freq: Vec<f64> =
        (0..head / 2).map(|i| c.rope_theta.powf(-2.0 * i as f64 / head as f64)).collect();
    let norm = |x: &[f64], name: &str| {
        rows(x, x.len().min(w[name].len()), |x| reference::rms_norm(x, &w[name], c.rms_norm_eps))
    };
    let embedding = &w["model.embed_tokens.weight"];
    let mut x: Vec<f64> = ids.iter().flat_map(|id| embedding[*id as usize * d..][..d].to_vec()).collect();
    for layer in 0..c.num_hidden_layers {
        let p = format!("model.layers.{layer}");
        let h = norm(&x, &format!("{p}.input_layernorm.weight"));
        let part = |name: &str| project(&h, w, &format!("{p}.self_attn.{name}"), d, scale);
        let rotated = |x: Vec<f64>, heads: usize, name: &str| -> Vec<f64> {
            x.chunks(head)
                .enumerate()
                .flat_map(|(i, x)| {
                    let name = format!("{p}.self_attn.{name}.weight");
                    let x = if c.qk_norm { norm(x, &name) } else { x.to_vec() };
                    reference::rope(&x, f64::from(positions[i / heads]), &inv_freq)
                })
                .collect()
        };
        let (q, k) =
            (rotated(part("q_proj"), q_heads, "q_norm"), rotated(part("k_proj"), kv_heads, "k_norm"));
        let v = part("v_proj");
        let (qw, kw) = (q_heads * head, kv_heads * head);
        let qkv: Vec<f64> = (0..ids.len())
            .flat_map(|i| [&q[i * qw..][..qw], &k[i * kw..][..kw], &v[i * kw..][..kw]].concat())
            .collect();
        let window = c.sliding_window.get(layer).copied().flatten();
        let attended = reference::forest_attention(&qkv, segments, q_heads, kv_heads, head, window);
        let o = project(&attended, w, &format!("{p}.self_attn.o_proj"), qw, scale);
        x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
        let h = norm(&x, &format!("{p}.post_attention_layernorm.weight"));
        let m = c.intermediate_size;
        let (gate, up) = (
            project(&h, w, &format!("{p}.mlp.gate_proj"), d, scale),
            project(&h, w, &format!("{p}.mlp.up_proj"), d, scale),
        );
        let gated: Vec<f64> = (0..ids.len())
            .flat_map(|i| reference::swiglu(&[&gate[i * m..][..m], &up[i * m..][..m]].concat()))
            .collect();
        let down = project(&gated, w, &format!("{p}.mlp.down_proj"), m, scale);
        x.iter_mut().zip(down).for_each(|(x, o)| *x += o);
    }
    norm(&x, "model.norm.weight")
}

/// `Σ_i (i + 1) sin(out_i / 10)` over all outputs: every one has a gradient of its own.
fn loss_f64(out: &[f64]) -> f64 {
    out.iter().enumerate().map(|(i, z)| (i + 1) as f64 * (0.1 * z).sin()).sum()
}

fn loss_tensor(out: &Tensor) -> candle_core::Result<Tensor> {
    let out = out.flatten_all()?;
    let weights: Vec<f32> = (1..=out.elem_count()).map(|i| i as f32).collect();
    ((out * 0.1)?.sin()? * Tensor::new(weights, &candle_core::Device::Cpu)?)?.sum_all()
}

/// Loss by the f64 forward.
fn truth(model: &RewardModel, w: &Weights, batch: &[Trajectory], scale: f64) -> f64 {
    let forest = Forest::new(batch);
    let c = model.config();
    let hidden = decoder(c, w, &forest.token_ids, &forest.positions, &forest.segments, scale);
    let lookback = model.min_prompt_tokens();
    let mut out = Vec::new();
    for (i, t) in batch.iter().enumerate() {
        let all = forest.rows(i);
        for (j, target) in t.response_ids.iter().enumerate() {
            let row = all[t.prompt_ids.len() + j - lookback] as usize;
            let h = &hidden[row * c.hidden_size..][..c.hidden_size];
            match w.get("score.weight") {
                Some(_) => out.push(project(h, w, "score", h.len(), 0.0)[0]),
                None => {
                    let name =
                        if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
                    let [logit, logsumexp, _, entropy] =
                        reference::token_reward(h, &w[name], &[*target], h.len())[0];
                    out.extend([logit, logsumexp, entropy]);
                }
            }
        }
    }
    loss_f64(&out)
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn gradients(model: &RewardModel, checkpointing: bool) -> Vec<Vec<f64>> {
    let mut gradients = Gradients::new(model.trained());
    model.train(&batch(), checkpointing, &mut gradients, loss_tensor).unwrap();
    let named = gradients.iter().zip(model.trained().iter());
    named.map(|(g, (name, _))| wide(g.unwrap_or_else(|| panic!("no gradient for {name}")))).collect()
}

/// Weights in f64 by name: the trained ones as they are, the rest as `base` has them.
fn weights(model: &RewardModel, base: &RewardModel) -> Weights {
    let all = base.trained().iter().chain(model.trained().iter());
    all.map(|(name, var)| (name.to_owned(), wide(var))).collect()
}

fn check(what: &str, model: &RewardModel, base: &RewardModel, scale: f64) {
    let w = weights(model, base);
    let got = gradients(model, false);
    assert_eq!(got, gradients(model, true), "{what}: checkpointing changed bits");
    for ((name, _), grad) in model.trained().iter().zip(&got) {
        for i in (0..grad.len()).step_by((grad.len() / 4).max(1)) {
            let at = |step: f64| {
                let mut moved = w.clone();
                moved.get_mut(name).unwrap()[i] += step;
                truth(model, &moved, &batch(), scale)
            };
            let want = (at(1e-4) - at(-1e-4)) / 2e-4;
            let error = (grad[i] - want).abs();
            assert!(error <= 2e-3 * (1.0 + want.abs()), "{what}: {name}[{i}]: {}, not {want}", grad[i]);
        }
    }
}

#[test]
fn every_architecture_has_its_gradients() {
    for (name, kind) in [
        ("llama-tied", HeadKind::QVocab),
        ("mistral-window", HeadKind::QVocab),
        ("qwen2", HeadKind::QVocab),
        ("qwen3", HeadKind::QVocab),
        ("qwen2-token-classification", HeadKind::QScalar),
        ("qwen2", HeadKind::Outcome), // with a head made from the seed
    ] {
        let model = RewardModel::load_for_training(&fixture(name), kind, &Method::Full, 3).unwrap();
        check(name, &model, &model, 0.0);
    }
}

/// The head of a reward model is of another scale than what a critic learns.
#[test]
fn a_critic_has_a_head_of_its_own() {
    let critic = |name: &str, seed| RewardModel::load_critic(&fixture(name), seed).unwrap();
    let weight = |model: &RewardModel, name: &str| -> Vec<f32> {
        let (_, var) = model.trained().iter().find(|(n, _)| *n == name).unwrap();
        var.flatten_all().unwrap().to_vec1().unwrap()
    };
    for name in ["qwen2-token-classification", "llama-sequence-classification"] {
        let model = critic(name, 3);
        assert_eq!(model.head(), HeadKind::QScalar);
        let kept =
            RewardModel::load_for_training(&fixture(name), HeadKind::QScalar, &Method::Full, 3).unwrap();
        let (head, layer) = ("score.weight", "model.layers.0.mlp.down_proj.weight");
        assert_ne!(weight(&model, head), weight(&kept, head), "{name}");
        assert_ne!(weight(&model, head), weight(&critic(name, 4), head), "{name}");
        assert_eq!(weight(&model, head), weight(&critic("qwen2", 3), head), "{name}: by the seed alone");
        assert_eq!(weight(&model, layer), weight(&kept, layer), "{name}");
        assert_eq!(weight(&model, "score.bias"), [0.0], "{name}");
    }
}

#[test]
fn adapters_have_their_gradients() {
    let targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
    let method = Method::Lora(Lora { rank: 3, alpha: 6.0, targets });
    for (name, kind) in [("qwen3", HeadKind::QVocab), ("llama-tied", HeadKind::QScalar)] {
        let model = RewardModel::load_for_training(&fixture(name), kind, &method, 7).unwrap();
        let base =
            RewardModel::load_for_training(&fixture(name), HeadKind::QVocab, &Method::Full, 7).unwrap();
        // B starts at zero, where A has no gradient yet: move it.
        for (i, (name, var)) in model.trained().iter().enumerate() {
            if name.ends_with("lora_B.weight") {
                let values: Vec<f32> =
                    (0..var.elem_count()).map(|j| ((i + j * 7) % 11) as f32 * 0.02 - 0.1).collect();
                var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
            }
        }
        check(name, &model, &base, 2.0);
    }
}
