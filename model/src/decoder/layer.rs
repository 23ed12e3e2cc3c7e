//! One layer of the decoder. What its attention sees is up to the caller: the batch alone, kept blocks too, or caches.

use qrm_kernels::{Layout, Norm, QkNorm, Rows};

use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::loader::Loader;
use crate::projection::Projection;

/// Attention and MLP, each after a norm and beside a residual stream.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(super) q_heads: usize,
    pub(super) kv_heads: usize,
    eps: f32,
    input_norm: Norm,
    qkv: Projection,
    qk_norm: Option<QkNorm>,
    o: Projection,
    post_norm: Norm,
    gate_up: Projection,
    down: Projection,
    pub(super) window: Option<usize>,
}

impl Layer {
    pub(super) fn load(
        loader: &mut Loader<'_>,
        c: &DecoderConfig,
        index: usize,
    ) -> Result<Self, CheckpointError> {
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
            input_norm: loader.norm(&format!("{prefix}.input_layernorm.weight"), d)?,
            qkv: loader.projection(&attention, &qkv_parts, d, c.qkv_bias)?,
            qk_norm: match c.qk_norm {
                true => Some(QkNorm {
                    q: loader.norm(&format!("{attention}.q_norm.weight"), c.head_dim)?,
                    k: loader.norm(&format!("{attention}.k_norm.weight"), c.head_dim)?,
                    eps,
                }),
                false => None,
            },
            o: loader.projection(&attention, &[("o_proj", d)], q, c.o_bias)?,
            post_norm: loader.norm(&format!("{prefix}.post_attention_layernorm.weight"), d)?,
            gate_up: loader.gates(&mlp, m, d, c.mlp_bias)?,
            down: loader.projection(&mlp, &[("down_proj", d)], m, c.mlp_bias)?,
            window: c.sliding_window.get(index).copied().flatten(),
        })
    }

    /// `[N, d]` to `[N, d]`.
    pub(crate) fn forward(&self, x: &Rows, layout: &Layout) -> candle_core::Result<Rows> {
        let attend = |qkv: &Rows, l: &Self| qkv.forest_attention(layout, (l.q_heads, l.kv_heads), l.window);
        self.mlp(&self.around(x, layout, attend)?)
    }

    /// What comes before the MLP, but the attention itself.
    pub(super) fn around(
        &self,
        x: &Rows,
        layout: &Layout,
        attend: impl FnOnce(&Rows, &Self) -> candle_core::Result<Rows>,
    ) -> candle_core::Result<Rows> {
        let qkv = self.qkv.forward(&x.rms_norm(&self.input_norm, self.eps)?, None)?;
        let qkv = qkv.qk_rope(layout, (self.q_heads, self.kv_heads), self.qk_norm.as_ref())?;
        let attended = attend(&qkv, self)?;
        drop(qkv);
        self.o.forward(&attended, Some(x))
    }

    pub(super) fn mlp(&self, x: &Rows) -> candle_core::Result<Rows> {
        self.mlp_beside(x, x.rms_norm(&self.post_norm, self.eps)?)
    }

    /// Of the rows that the head reads: the last layer's others are nobody's input.
    pub(super) fn mlp_read(&self, x: &Rows, layout: &Layout) -> candle_core::Result<Rows> {
        self.mlp_beside(&x.read(layout)?, x.rms_norm_read(layout, &self.post_norm, self.eps)?)
    }

    fn mlp_beside(&self, residual: &Rows, normed: Rows) -> candle_core::Result<Rows> {
        self.down.forward(&self.gate_up.gated(&normed)?, Some(residual))
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
