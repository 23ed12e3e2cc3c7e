//! Weights in GGUF: dequantised, named as Hugging Face names them, llama.cpp's row order undone.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use qrm_kernels::mmap::{Mmap, map_file};

use super::CheckpointError;
use super::weights::{Weights, dominant};

/// Where a tensor lies.
struct Entry {
    info: TensorInfo,
    /// Its rows are in llama.cpp's order.
    permuted: bool,
}

/// The file's tensors by Hugging Face name, mapped but not yet read.
pub(super) struct GgufWeights {
    map: Mmap,
    data: u64,
    head_dim: usize,
    entries: BTreeMap<String, Entry>,
    stored_dtype: String,
}

impl GgufWeights {
    /// Maps a file. `head_dim` is where llama.cpp's row order repeats.
    pub(super) fn open(dir: &Path, file: &str, head_dim: usize) -> Result<Self, CheckpointError> {
        let path = dir.join(file);
        let map = map_file(&path).map_err(|source| CheckpointError::io(&path, source))?;
        let broken = |message: String| CheckpointError::Weights(format!("{file}: {message}"));
        let bytes: &[u8] = &map;
        // candle divides by `general.alignment`, which a hostile file may set to 0.
        let content = catch_unwind(|| Content::read(&mut Cursor::new(bytes)))
            .map_err(|_| broken("the header makes no sense".into()))?
            .map_err(|e| broken(format!("truncated or not GGUF: {e}")))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.as_str(),
            _ => return Err(broken("general.architecture is missing".into())),
        };
        // Only its llama converter reorders rows; Mistral goes by that name too.
        let permutes = match architecture {
            "llama" => true,
            "qwen2" | "qwen3" => false,
            other => return Err(broken(format!("general.architecture {other:?} is not supported"))),
        };
        let mut entries = BTreeMap::new();
        for (name, info) in content.tensor_infos {
            // The RoPE factors that config.json's llama3 scaling gives as well.
            if name == "rope_freqs.weight" {
                continue;
            }
            // No number takes less than a bit. (candle's own count may overflow, and no numbers at all are a null slice.)
            let elements = info.shape.dims().iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            if elements.is_none_or(|n| n == 0 || n / 8 > bytes.len()) {
                return Err(broken(format!("{name} has a shape that makes no sense")));
            }
            let rows = [".attn_q.", ".attn_k."].iter().any(|part| name.contains(part));
            let entry = Entry { info, permuted: permutes && rows };
            let hf = hugging_face_name(&name).unwrap_or_else(|| name.clone());
            if entries.insert(hf, entry).is_some() {
                return Err(broken(format!("{name} is there twice")));
            }
        }
        let types: Vec<_> = entries
            .values()
            .map(|e| (dtype_name(e.info.ggml_dtype), e.info.shape.dims()))
            .map(|(dtype, dims)| (dtype, dims.iter().fold(1, |n: usize, d| n.saturating_mul(*d))))
            .collect();
        let stored_dtype = dominant(types.iter().map(|(dtype, elements)| (dtype.as_str(), *elements)));
        Ok(Self { map, data: content.tensor_data_offset, head_dim, entries, stored_dtype })
    }
}

impl Weights for GgufWeights {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.info.shape.dims())
    }

    /// llama.cpp multiplies by it where there is one: it is quantised finer than the embeddings.
    fn has_own_output(&self) -> bool {
        self.entries.contains_key("lm_head.weight")
    }

    fn take(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let broken = |message: String| CheckpointError::Weights(format!("{name}: {message}"));
        let Entry { info, permuted } =
            self.entries.remove(name).ok_or_else(|| broken("missing".to_owned()))?;
        if !readable(info.ggml_dtype) {
            return Err(broken(format!("stored as {}, which is not supported", dtype_name(info.ggml_dtype))));
        }
        let mut file = Cursor::new(&self.map[..]);
        let values = info
            .read(&mut file, self.data, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1())
            .map_err(|e| broken(e.to_string()))?;
        match permuted {
            true => Ok(unpermute(&values, info.shape.dims(), self.head_dim)),
            false => Ok(values),
        }
    }

    fn skip(&mut self, name: &str) {
        self.entries.remove(name);
    }

    fn left(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    fn stored_dtype(&self) -> &str {
        &self.stored_dtype
    }
}

/// The types that can be dequantised.
fn readable(dtype: GgmlDType) -> bool {
    use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    matches!(dtype, F32 | F16 | BF16 | Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4K | Q5K | Q6K)
}

/// As llama.cpp writes it: `Q4_K`, not `Q4K`.
fn dtype_name(dtype: GgmlDType) -> String {
    let name = format!("{dtype:?}");
    match name.strip_suffix('K').filter(|rest| !rest.ends_with('_')) {
        Some(rest) => format!("{rest}_K"),
        None => name,
    }
}

/// `blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj.weight`; none for a name that is not known.
fn hugging_face_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let module = match module {
        "token_embd" => "model.embed_tokens".to_owned(),
        "output_norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        "cls.output" => "score".to_owned(),
        block => {
            let (layer, part) = block.strip_prefix("blk.")?.split_once('.')?;
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("model.layers.{layer}.{part}")
        }
    };
    Some(format!("{module}.{kind}"))
}

/// Within each head llama.cpp interleaves the two halves that RoPE turns together; puts them one after the other
/// again. A bias is a matrix of one column.
fn unpermute(values: &[f32], dims: &[usize], head_dim: usize) -> Vec<f32> {
    let columns = dims.get(1).copied().unwrap_or(1);
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * columns) {
        for row in (0..half).map(|i| 2 * i).chain((0..half).map(|i| 2 * i + 1)) {
            out.extend_from_slice(head.get(row * columns..(row + 1) * columns).unwrap_or_default());
        }
    }
    out
}
