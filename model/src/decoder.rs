//! The one decoder: token ids of a forest in, hidden states out. Llama, Mistral, Qwen2 and Qwen3 are settings of it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use qrm_kernels::{Panels, RopeTable, forest_attention, linear, qk_rope, rms_norm, swiglu};

use crate::checkpoint::config::RopeScaling;
use crate::checkpoint::{Checkpoint, CheckpointError, DecoderConfig};
use crate::forest::Forest;

/// A projection: packed weight and optional bias.
struct Projection {
    weight: Panels,
    bias: Option<Vec<f32>>,
}

impl Projection {
    /// Takes projections that read the same input, `(name, outputs)` each, as one.
    fn load(
        checkpoint: &mut Checkpoint,
        prefix: &str,
        parts: &[(&str, usize)],
        input: usize,
        with_bias: bool,
    ) -> Result<Self, CheckpointError> {
        let mut weights = Vec::with_capacity(parts.len());
        let mut bias = Vec::new();
        for (name, out) in parts {
            weights.push(checkpoint.tensor(&format!("{prefix}.{name}.weight"), &[*out, input])?);
            if with_bias {
                bias.extend(vector(checkpoint, &format!("{prefix}.{name}.bias"), *out)?);
            }
        }
        let weight = Panels::pack_rows(&weights.iter().collect::<Vec<_>>()).map_err(pack_error)?;
        Ok(Self { weight, bias: with_bias.then_some(bias) })
    }

    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, self.bias.as_deref(), residual)
    }
}

/// Where token embeddings come from.
enum Embedding {
    /// A matrix of its own, `[V, d]`.
    Matrix(Tensor),
    /// The packed `lm_head`, read row by row: one copy in memory.
    Tied(Arc<Panels>),
}

struct Layer {
    input_norm: Vec<f32>,
    qkv: Projection,
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    o: Projection,
    post_norm: Vec<f32>,
    gate_up: Projection,
    down: Projection,
    window: Option<usize>,
}

/// Positions whose rotations are kept. A longer batch makes its own: a million-token context must not cost memory
/// before anyone uses it.
const ROPE_POSITIONS: usize = 8192;

/// Embedding, layers and final norm.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    rope: RopeTable,
}

impl Decoder {
    /// Takes the decoder's weights out of a checkpoint. `lm_head` is the packed head of a model that ties it.
    pub fn load(checkpoint: &mut Checkpoint, lm_head: Option<Arc<Panels>>) -> Result<Self, CheckpointError> {
        let config = checkpoint.config().clone();
        let (d, v) = (config.hidden_size, config.vocab_size);
        let embedding = match lm_head {
            Some(panels) => Embedding::Tied(panels),
            None => Embedding::Matrix(checkpoint.tensor("model.embed_tokens.weight", &[v, d])?),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(checkpoint, &config, i))
            .collect::<Result<_, CheckpointError>>()?;
        let final_norm = vector(checkpoint, "model.norm.weight", d)?;
        let rope = RopeTable::new(&inv_freq(&config), config.max_position_embeddings.min(ROPE_POSITIONS));
        Ok(Self { config, embedding, layers, final_norm, rope })
    }

    /// Hidden states after the final norm at `rows` of the forest, `[rows.len(), d]`, f32.
    pub fn forward(&self, forest: &Forest, rows: &[u32]) -> candle_core::Result<Tensor> {
        let c = &self.config;
        let eps = c.rms_norm_eps as f32;
        let positions = forest.positions.iter().max().map_or(0, |last| *last as usize + 1);
        let longer = (positions > self.rope.positions()).then(|| RopeTable::new(&inv_freq(c), positions));
        let rope = longer.as_ref().unwrap_or(&self.rope);
        let mut x = match &self.embedding {
            Embedding::Matrix(matrix) => {
                let ids = Tensor::from_slice(&forest.token_ids, forest.len(), &Device::Cpu)?;
                matrix.index_select(&ids, 0)?
            }
            Embedding::Tied(panels) => panels.gather(&forest.token_ids)?,
        };
        for layer in &self.layers {
            let qkv = layer.qkv.forward(&rms_norm(&x, &layer.input_norm, eps)?, None)?;
            let qk_norm = layer.qk_norm.as_ref().map(|(q, k)| (q.as_slice(), k.as_slice(), eps));
            let (q_heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
            let qkv = qk_rope(&qkv, &forest.positions, rope, q_heads, kv_heads, qk_norm)?;
            let attended = forest_attention(&qkv, &forest.segments, q_heads, kv_heads, layer.window)?;
            drop(qkv);
            x = layer.o.forward(&attended, Some(&x))?;
            let gate_up = layer.gate_up.forward(&rms_norm(&x, &layer.post_norm, eps)?, None)?;
            let gated = swiglu(&gate_up)?;
            drop(gate_up);
            x = layer.down.forward(&gated, Some(&x))?;
        }
        let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        rms_norm(&x.index_select(&rows, 0)?, &self.final_norm, eps)
    }
}

impl Layer {
    fn load(checkpoint: &mut Checkpoint, c: &DecoderConfig, index: usize) -> Result<Self, CheckpointError> {
        let prefix = format!("model.layers.{index}");
        let (d, m) = (c.hidden_size, c.intermediate_size);
        let q = c.num_attention_heads * c.head_dim;
        let kv = c.num_key_value_heads * c.head_dim;
        let attention = format!("{prefix}.self_attn");
        let mlp = format!("{prefix}.mlp");
        let qkv_parts = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        Ok(Self {
            input_norm: vector(checkpoint, &format!("{prefix}.input_layernorm.weight"), d)?,
            qkv: Projection::load(checkpoint, &attention, &qkv_parts, d, c.qkv_bias)?,
            qk_norm: match c.qk_norm {
                true => Some((
                    vector(checkpoint, &format!("{attention}.q_norm.weight"), c.head_dim)?,
                    vector(checkpoint, &format!("{attention}.k_norm.weight"), c.head_dim)?,
                )),
                false => None,
            },
            o: Projection::load(checkpoint, &attention, &[("o_proj", d)], q, c.o_bias)?,
            post_norm: vector(checkpoint, &format!("{prefix}.post_attention_layernorm.weight"), d)?,
            gate_up: Projection::load(checkpoint, &mlp, &[("gate_proj", m), ("up_proj", m)], d, c.mlp_bias)?,
            down: Projection::load(checkpoint, &mlp, &[("down_proj", d)], m, c.mlp_bias)?,
            window: c.sliding_window.get(index).copied().flatten(),
        })
    }
}

/// Rotation frequencies, `[head_dim / 2]`, as `transformers` computes them.
fn inv_freq(config: &DecoderConfig) -> Vec<f64> {
    let plain =
        (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64));
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => plain
            .map(|f| {
                let context = original_max_position_embeddings as f64;
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength < context / high_freq_factor {
                    f
                } else if wavelength > context / low_freq_factor {
                    f / factor
                } else {
                    let smooth =
                        (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
    }
}

/// Takes a one-dimensional weight.
pub(crate) fn vector(
    checkpoint: &mut Checkpoint,
    name: &str,
    len: usize,
) -> Result<Vec<f32>, CheckpointError> {
    checkpoint.tensor(name, &[len])?.to_vec1().map_err(pack_error)
}

pub(crate) fn pack_error(error: candle_core::Error) -> CheckpointError {
    CheckpointError::Weights(error.to_string())
}
