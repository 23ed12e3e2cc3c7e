//! The one decoder: token ids of a forest in, hidden states out. Llama, Mistral, Qwen2 and Qwen3 are settings of it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use qrm_kernels::{
    Fresh, KvCache, Panels, QkNorm, RopeTable, Segment, forest_attention, qk_rope, rms_norm, swiglu,
};

use crate::checkpoint::config::RopeScaling;
use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::forest::Forest;
use crate::loader::Loader;
use crate::prefix_cache::Continuation;
use crate::projection::Projection;

/// Where token embeddings come from.
pub(crate) enum Embedding {
    /// A matrix, `[V, d]`.
    Matrix(Tensor),
    /// The packed `lm_head`, read row by row: one copy in memory.
    Tied(Arc<Panels>),
}

/// Positions whose rotations are kept. A longer batch makes its own: a million-token context must not cost memory
/// before anyone uses it.
const ROPE_POSITIONS: usize = 8192;

/// Embedding, layers and final norm.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Tensor,
    rope: Arc<RopeTable>,
}

/// What every layer reads of a batch.
pub(crate) struct Context {
    positions: Arc<[u32]>,
    segments: Arc<[Segment]>,
    rope: Arc<RopeTable>,
}

impl Decoder {
    /// Takes the decoder's weights. `tied` are the embeddings of a model that shares them with its head.
    pub(crate) fn load(loader: &mut Loader<'_>, tied: Option<Embedding>) -> Result<Self, CheckpointError> {
        let config = loader.checkpoint().config().clone();
        let (d, v) = (config.hidden_size, config.vocab_size);
        let embedding = match tied {
            Some(embedding) => embedding,
            None => Embedding::Matrix(loader.tensor("model.embed_tokens.weight", &[v, d])?),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(loader, &config, i))
            .collect::<Result<_, CheckpointError>>()?;
        let final_norm = loader.tensor("model.norm.weight", &[d])?;
        let positions = config.max_position_embeddings.min(ROPE_POSITIONS);
        let rope = Arc::new(RopeTable::new(&inv_freq(&config), positions));
        Ok(Self { config, embedding, layers, final_norm, rope })
    }

    /// Hidden states after the final norm at `rows` of the forest, `[rows.len(), d]`, f32. No gradients.
    pub(crate) fn forward(
        &self,
        forest: &Forest,
        continued: &mut Continuation,
        rows: &[u32],
    ) -> candle_core::Result<Tensor> {
        let rope = self.rope(&forest.positions);
        let mut x = self.embed(&forest.token_ids)?.detach();
        for layer in &self.layers {
            let attend = |qkv: &Tensor, l: &Layer| {
                continued.attend(qkv, &forest.segments, (l.q_heads, l.kv_heads), l.window)
            };
            x = layer.detach().around(&x, &forest.positions, &rope, attend)?;
        }
        Ok(self.finish(&x, rows)?.detach())
    }

    /// The same for new tokens alone, `token_ids [N]` in the order of `fresh`: what came before is read from `caches`,
    /// one a layer, which then hold the new tokens too.
    pub(crate) fn extend(
        &self,
        token_ids: &[u32],
        segments: &[Segment],
        fresh: &[Fresh],
        caches: &mut [KvCache],
        rows: &[u32],
    ) -> candle_core::Result<Tensor> {
        let positions: Arc<[u32]> = fresh
            .iter()
            .flat_map(|f| {
                let end = segments[f.segment].position + segments[f.segment].len;
                (end - f.len) as u32..end as u32
            })
            .collect();
        let rope = self.rope(&positions);
        let mut x = self.embed(token_ids)?.detach();
        for (layer, cache) in self.layers.iter().zip(caches) {
            let attend =
                |qkv: &Tensor, l: &Layer| cache.attend(qkv, segments, fresh, l.q_heads, l.kv_heads, l.window);
            x = layer.detach().around(&x, &positions, &rope, attend)?;
        }
        Ok(self.finish(&x, rows)?.detach())
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn context(&self, forest: &Forest) -> Context {
        let rope = self.rope(&forest.positions);
        Context { positions: forest.positions.clone(), segments: forest.segments.clone(), rope }
    }

    fn rope(&self, positions: &[u32]) -> Arc<RopeTable> {
        let positions = positions.iter().max().map_or(0, |last| *last as usize + 1);
        match positions > self.rope.positions() {
            true => Arc::new(RopeTable::new(&inv_freq(&self.config), positions)),
            false => self.rope.clone(),
        }
    }

    /// The tokens' embeddings, `[N, d]`.
    pub(crate) fn embed(&self, token_ids: &[u32]) -> candle_core::Result<Tensor> {
        match &self.embedding {
            Embedding::Matrix(matrix) => {
                matrix.index_select(&Tensor::from_slice(token_ids, token_ids.len(), &Device::Cpu)?, 0)
            }
            Embedding::Tied(panels) => panels.gather(token_ids),
        }
    }

    /// The final norm, at some rows.
    pub(crate) fn finish(&self, x: &Tensor, rows: &[u32]) -> candle_core::Result<Tensor> {
        let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        rms_norm(&x.index_select(&rows, 0)?, &self.final_norm, self.config.rms_norm_eps as f32)
    }
}

/// Attention and MLP, each after a norm and beside a residual stream.
#[derive(Clone)]
pub(crate) struct Layer {
    q_heads: usize,
    kv_heads: usize,
    eps: f32,
    input_norm: Tensor,
    qkv: Projection,
    qk_norm: Option<QkNorm>,
    o: Projection,
    post_norm: Tensor,
    gate_up: Projection,
    down: Projection,
    window: Option<usize>,
}

impl Layer {
    fn load(loader: &mut Loader<'_>, c: &DecoderConfig, index: usize) -> Result<Self, CheckpointError> {
        let prefix = format!("model.layers.{index}");
        let (d, m) = (c.hidden_size, c.intermediate_size);
        let q = c.num_attention_heads * c.head_dim;
        let kv = c.num_key_value_heads * c.head_dim;
        let attention = format!("{prefix}.self_attn");
        let mlp = format!("{prefix}.mlp");
        let qkv_parts = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        let eps = c.rms_norm_eps as f32;
        Ok(Self {
            q_heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            eps,
            input_norm: loader.tensor(&format!("{prefix}.input_layernorm.weight"), &[d])?,
            qkv: loader.projection(&attention, &qkv_parts, d, c.qkv_bias)?,
            qk_norm: match c.qk_norm {
                true => Some(QkNorm {
                    q: loader.tensor(&format!("{attention}.q_norm.weight"), &[c.head_dim])?,
                    k: loader.tensor(&format!("{attention}.k_norm.weight"), &[c.head_dim])?,
                    eps,
                }),
                false => None,
            },
            o: loader.projection(&attention, &[("o_proj", d)], q, c.o_bias)?,
            post_norm: loader.tensor(&format!("{prefix}.post_attention_layernorm.weight"), &[d])?,
            gate_up: loader.projection(&mlp, &[("gate_proj", m), ("up_proj", m)], d, c.mlp_bias)?,
            down: loader.projection(&mlp, &[("down_proj", d)], m, c.mlp_bias)?,
            window: c.sliding_window.get(index).copied().flatten(),
        })
    }

    /// `[N, d]` to `[N, d]`.
    pub(crate) fn forward(&self, x: &Tensor, context: &Context) -> candle_core::Result<Tensor> {
        let attend = |qkv: &Tensor, l: &Self| {
            forest_attention(qkv, &context.segments, l.q_heads, l.kv_heads, l.window)
        };
        self.around(x, &context.positions, &context.rope, attend)
    }

    /// All of the layer but the attention itself.
    fn around(
        &self,
        x: &Tensor,
        positions: &Arc<[u32]>,
        rope: &Arc<RopeTable>,
        attend: impl FnOnce(&Tensor, &Self) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let qkv = self.qkv.forward(&rms_norm(x, &self.input_norm, self.eps)?, None)?;
        let qkv = qk_rope(&qkv, positions, rope, self.q_heads, self.kv_heads, self.qk_norm.as_ref())?;
        let attended = attend(&qkv, self)?;
        drop(qkv);
        let x = self.o.forward(&attended, Some(x))?;
        let gate_up = self.gate_up.forward(&rms_norm(&x, &self.post_norm, self.eps)?, None)?;
        let gated = swiglu(&gate_up)?;
        drop(gate_up);
        self.down.forward(&gated, Some(&x))
    }

    /// The same numbers, not followed by autograd.
    pub(crate) fn detach(&self) -> Self {
        Self {
            input_norm: self.input_norm.detach(),
            qkv: self.qkv.detach(),
            qk_norm: self.qk_norm.as_ref().map(|n| QkNorm { q: n.q.detach(), k: n.k.detach(), eps: n.eps }),
            o: self.o.detach(),
            post_norm: self.post_norm.detach(),
            gate_up: self.gate_up.detach(),
            down: self.down.detach(),
            ..*self
        }
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
