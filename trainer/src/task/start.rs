//! An untrained model in Hugging Face layout, to begin with.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::problem::{Generator, Split};
use super::{tokenizer, worked};
use crate::export::save;
use crate::files;

/// The size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Shape {
    /// Width of the residual stream.
    #[arg(long, default_value_t = 160)]
    pub hidden_size: usize,
    /// Layers.
    #[arg(long, default_value_t = 6)]
    pub layers: usize,
    /// Attention heads, of queries and of keys.
    #[arg(long, default_value_t = 5)]
    pub heads: usize,
    /// Width of the MLP.
    #[arg(long, default_value_t = 432)]
    pub intermediate_size: usize,
    /// Most tokens of the vocabulary.
    #[arg(long, default_value_t = 640)]
    pub vocab_size: usize,
    /// Longest problem and answer, tokens.
    #[arg(long, default_value_t = 512)]
    pub context: usize,
}

/// Problems that the tokenizer is trained on.
const TOKENIZER_PROBLEMS: usize = 20_000;

/// Writes tokenizer, config and random weights (normal, deviation 0.02) to `dir`, whole or not at all; a Llama with tied
/// embeddings.
pub fn write(shape: Shape, seed: u64, dir: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        shape.heads > 0 && shape.hidden_size.is_multiple_of(2 * shape.heads),
        "the width must be an even multiple of the heads"
    );
    let is_empty = !dir.exists() || std::fs::read_dir(dir)?.next().is_none();
    anyhow::ensure!(is_empty, "{} is not empty", dir.display());
    files::directory(dir, |dir| fill(shape, seed, dir))
}

fn fill(shape: Shape, seed: u64, dir: &Path) -> anyhow::Result<()> {
    let problems = Generator::new(Split::Train, 1..=4, seed).take(TOKENIZER_PROBLEMS);
    let mut rng = StdRng::seed_from_u64(seed);
    let texts = problems.flat_map(move |p| [worked::answer(&p, &mut rng), p.question]);
    let vocab = tokenizer::train(texts, shape.vocab_size, dir)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads, "head_dim": shape.hidden_size / shape.heads,
        "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        "bos_token_id": null, "eos_token_id": 0, "pad_token_id": 0, "torch_dtype": "float32",
    });
    save(&dir.join("model.safetensors"), &weights(shape, vocab, seed)?, DType::F32)?;
    Ok(std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?)
}

fn weights(shape: Shape, vocab: usize, seed: u64) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let (d, m) = (shape.hidden_size, shape.intermediate_size);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut noise = |rows: usize, columns: usize, deviation: f64| {
        let uniform = |rng: &mut StdRng| rng.random::<f64>().max(f64::MIN_POSITIVE);
        let values = (0..rows * columns).map(|_| {
            let (a, b) = (uniform(&mut rng), uniform(&mut rng));
            (deviation * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
        });
        Tensor::from_vec(values.collect::<Vec<_>>(), (rows, columns), &Device::Cpu)
    };
    let ones = || Tensor::ones(d, DType::F32, &Device::Cpu);
    let mut all = BTreeMap::new();
    all.insert("model.embed_tokens.weight".to_owned(), noise(vocab, d, 0.02)?);
    all.insert("model.norm.weight".to_owned(), ones()?);
    // What is added to the residual stream starts smaller the more layers add to it (GPT-2).
    let out = 0.02 / (2.0 * shape.layers as f64).sqrt();
    for layer in 0..shape.layers {
        let p = format!("model.layers.{layer}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            all.insert(format!("{p}.{name}.weight"), ones()?);
        }
        for (name, rows, columns, deviation) in [
            ("self_attn.q_proj", d, d, 0.02),
            ("self_attn.k_proj", d, d, 0.02),
            ("self_attn.v_proj", d, d, 0.02),
            ("self_attn.o_proj", d, d, out),
            ("mlp.gate_proj", m, d, 0.02),
            ("mlp.up_proj", m, d, 0.02),
            ("mlp.down_proj", d, m, out),
        ] {
            all.insert(format!("{p}.{name}.weight"), noise(rows, columns, deviation)?);
        }
    }
    Ok(all)
}
