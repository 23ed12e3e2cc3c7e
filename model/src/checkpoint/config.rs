//! The decoder's settings, read from `config.json`.

use serde_json::Value;

use super::fields::{FieldError, Fields, missing};
use super::rope;

/// How positions are stretched (`rope_scaling` / `rope_parameters`).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain RoPE.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Llama 3's frequency-dependent scaling.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Below this the full factor applies.
        low_freq_factor: f64,
        /// Above this none does.
        high_freq_factor: f64,
        /// The context it was trained on.
        original_max_position_embeddings: usize,
    },
}

/// The settings that make the one decoder a Llama, Mistral, Qwen2 or Qwen3.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `architectures[0]`.
    pub architecture: String,
    /// V.
    pub vocab_size: usize,
    /// d.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of one head (`hidden_size / num_attention_heads` when absent).
    pub head_dim: usize,
    /// Longest P + T.
    pub max_position_embeddings: usize,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of RoPE.
    pub rope_theta: f64,
    /// Scaling of RoPE.
    pub rope_scaling: RopeScaling,
    /// Per layer: `Some(w)` = a token sees the last w positions, itself included.
    pub sliding_window: Vec<Option<usize>>,
    /// q, k, v projections have a bias (always for Qwen2, `attention_bias` otherwise).
    pub qkv_bias: bool,
    /// The o projection has one (Llama's and Qwen3's `attention_bias`).
    pub o_bias: bool,
    /// MLP projections have one (`mlp_bias`).
    pub mlp_bias: bool,
    /// RMSNorm over each query and key head (Qwen3).
    pub qk_norm: bool,
    /// `lm_head` is the embedding.
    pub tie_word_embeddings: bool,
    /// Ends of sequence (`eos_token_id`); the first is for `append_eos`.
    pub eos_token_ids: Vec<u32>,
}

/// No model is larger in any of these; the products of two stay far from overflow.
const MAX_SIZE: usize = 1 << 24;
/// No head is wider: RoPE has a table of angles for each pair of a head, before any weight is looked at.
const MAX_HEAD_DIM: usize = 1024;
/// As many layers as a config may ask for.
const MAX_LAYERS: usize = 4096;

/// What `model_type` decides.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl DecoderConfig {
    /// Reads a parsed `config.json`. The error names the field at fault.
    pub(super) fn read(config: Fields<'_>) -> Result<Self, FieldError> {
        let model_type = config.text("model_type")?.ok_or_else(|| missing("model_type"))?;
        let family = match model_type {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => {
                return Err(format!(
                    "model_type {other:?} is not supported, only llama, mistral, qwen2 and qwen3"
                ));
            }
        };
        if let Some(act) = config.text("hidden_act")?.filter(|act| *act != "silu") {
            return Err(format!("hidden_act {act:?} is not supported, only \"silu\""));
        }
        if config.get("quantization_config").is_some() {
            return Err("quantization_config: quantised safetensors are not supported; use GGUF".into());
        }

        let vocab_size = config.required_size("vocab_size", MAX_SIZE)?;
        let hidden_size = config.required_size("hidden_size", MAX_SIZE)?;
        let num_hidden_layers = config.required_size("num_hidden_layers", MAX_LAYERS)?;
        let num_attention_heads = config.required_size("num_attention_heads", MAX_SIZE)?;
        let num_key_value_heads =
            config.size("num_key_value_heads", MAX_SIZE)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads \
                 {num_key_value_heads}"
            ));
        }
        let head_dim = match config.size("head_dim", MAX_SIZE)? {
            Some(head_dim) => head_dim,
            None if family == Family::Qwen3 => 128,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                return Err(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads \
                     {num_attention_heads}, and head_dim is missing"
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(format!("head_dim {head_dim} is odd; RoPE turns pairs"));
        }
        if head_dim > MAX_HEAD_DIM {
            return Err(format!("head_dim {head_dim} is too large, {MAX_HEAD_DIM} is the most"));
        }
        if num_attention_heads.saturating_mul(head_dim) > MAX_SIZE {
            return Err(format!(
                "num_attention_heads {num_attention_heads} x head_dim {head_dim} is too large"
            ));
        }
        let (rope_theta, rope_scaling) = rope::read(config, MAX_SIZE)?;
        let bias = matches!(family, Family::Llama | Family::Qwen3) && config.flag("attention_bias")?;
        Ok(Self {
            architecture: architecture(config)?.unwrap_or(model_type).to_owned(),
            vocab_size,
            hidden_size,
            intermediate_size: config.required_size("intermediate_size", MAX_SIZE)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: config.required_size("max_position_embeddings", MAX_SIZE)?,
            rms_norm_eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            sliding_window: sliding_window(config, family, num_hidden_layers)?,
            qkv_bias: bias || family == Family::Qwen2,
            o_bias: bias,
            mlp_bias: family == Family::Llama && config.flag("mlp_bias")?,
            qk_norm: family == Family::Qwen3,
            tie_word_embeddings: config.flag("tie_word_embeddings")?,
            eos_token_ids: eos_token_ids(config, vocab_size)?,
        })
    }
}

/// `architectures[0]`.
pub(super) fn architecture(config: Fields<'_>) -> Result<Option<&str>, FieldError> {
    match config.list("architectures")?.and_then(<[Value]>::first) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(other) => Err(format!("architectures holds {other}, not a string")),
    }
}

/// The window of each layer, by the rules of each family's configuration class in `transformers`.
fn sliding_window(
    config: Fields<'_>,
    family: Family,
    layers: usize,
) -> Result<Vec<Option<usize>>, FieldError> {
    const DEFAULT: usize = 4096;
    // An explicit null switches the window off; only a missing field takes the class's default.
    let window = match config.0.contains_key("sliding_window") {
        true => config.size("sliding_window", usize::MAX)?,
        false => Some(DEFAULT),
    };
    match family {
        Family::Llama => return Ok(vec![None; layers]),
        Family::Mistral => return Ok(vec![window; layers]),
        Family::Qwen2 | Family::Qwen3 if !config.flag("use_sliding_window")? => {
            return Ok(vec![None; layers]);
        }
        Family::Qwen2 | Family::Qwen3 => {}
    }
    let Some(types) = config.list("layer_types")? else {
        // Zero is a meaning of its own here: every layer has the window.
        let first = match config.get("max_window_layers") {
            None => 28,
            Some(value) => value.as_u64().ok_or_else(|| format!("max_window_layers is {value}"))?,
        };
        return Ok((0..layers as u64).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(format!("layer_types names {} layers of {layers}", types.len()));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(format!("layer_types: {kind} is not supported")),
        })
        .collect()
}

/// An id, a list of ids, or none. The first has to be one of the vocabulary; others that the weights lack are never sampled.
pub(super) fn eos_token_ids(config: Fields<'_>, vocab_size: usize) -> Result<Vec<u32>, FieldError> {
    let ids = match config.get("eos_token_id") {
        None => &[],
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let known = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("eos_token_id {value} is not an id of the vocabulary"))
    };
    let known = ids.iter().map(known).enumerate();
    known.filter(|(i, id)| *i == 0 || id.is_ok()).map(|(_, id)| id).collect()
}
