//! GGUF: names, llama.cpp's row order, quantised types, broken files.

use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use qrm_model::{Checkpoint, RewardModel, Trajectory};
use tempfile::TempDir;

use crate::{copy, fixture, refusal};

const PARTS: [(&str, &str); 11] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
];

pub(crate) fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm");
    name = name.replace("lm_head", "output").replace("model.layers.", "blk.");
    PARTS.iter().fold(name, |name, (hf, gguf)| name.replace(hf, gguf))
}

/// llama.cpp's `permute`: `reshape(heads, 2, rows / heads / 2, …).swapaxes(1, 2)`.
fn permute(tensor: &Tensor, head_dim: usize) -> Tensor {
    let dims = tensor.dims().to_vec();
    let columns = dims.get(1).copied().unwrap_or(1);
    let split = tensor.reshape((dims[0] / head_dim, 2, head_dim / 2, columns)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape(dims).unwrap()
}

/// The tensors of a fixture, by name.
fn tensors(name: &str) -> Vec<(String, Tensor)> {
    let file = fixture(name).join("model.safetensors");
    let mut all: Vec<_> = candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// A fixture as GGUF, matrices stored as `dtype`.
fn convert(name: &str, architecture: &str, dtype: GgmlDType) -> TempDir {
    let dir = copy(name);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let head_dim = Checkpoint::open(&fixture(name)).unwrap().config().head_dim;
    let mut stored: Vec<_> = tensors(name)
        .iter()
        .map(|(name, tensor)| {
            let turned = architecture == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
            let tensor = if turned { permute(tensor, head_dim) } else { tensor.clone() };
            let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
            (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let factors = Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap();
    stored.push(("rope_freqs.weight".into(), QTensor::quantize(&factors, GgmlDType::F32).unwrap()));
    write(dir.path(), architecture, &stored, &[]);
    dir
}

pub(crate) fn write(dir: &Path, architecture: &str, tensors: &[(String, QTensor)], more: &[(&str, &Value)]) {
    let architecture = Value::String(architecture.into());
    let mut metadata = vec![("general.architecture", &architecture)];
    metadata.extend(more);
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = File::create(dir.join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

/// Largest difference between a directory's weights and a fixture's.
fn distance(dir: &Path, name: &str) -> f32 {
    let mut checkpoint = Checkpoint::open(dir).unwrap();
    let mut worst = 0f32;
    for (name, want) in tensors(name) {
        let got = checkpoint.tensor(&name, want.dims()).unwrap();
        let off = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        worst = worst.max(off.to_scalar().unwrap());
    }
    checkpoint.finish().unwrap();
    worst
}

#[test]
fn weights_come_back_as_they_were() {
    for (name, architecture) in
        [("llama-tied", "llama"), ("mistral-window", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]
    {
        let dir = convert(name, architecture, GgmlDType::F32);
        assert_eq!(distance(dir.path(), name), 0.0, "{name}");
        assert!(RewardModel::load(dir.path()).is_ok(), "{name}");
    }
}

/// As llama.cpp has it: what the configuration says is of the model that the file was made from.
#[test]
fn an_output_matrix_of_its_own_counts() {
    let dir = convert("llama-tied", "llama", GgmlDType::F32);
    let score = |dir: &Path| {
        let batch = [Trajectory { prompt_ids: [3, 57].into(), response_ids: [57, 58].into() }];
        RewardModel::load(dir).unwrap().score(&batch).unwrap().scores[0].logit.clone()
    };
    let tied = score(dir.path());
    let mut stored: Vec<_> = tensors("llama-tied")
        .iter()
        .map(|(name, tensor)| {
            let turned = name.contains("q_proj") || name.contains("k_proj");
            let head_dim = Checkpoint::open(&fixture("llama-tied")).unwrap().config().head_dim;
            let tensor = if turned { permute(tensor, head_dim) } else { tensor.clone() };
            (gguf_name(name), QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
        })
        .collect();
    let embedding = &tensors("llama-tied").into_iter().find(|(n, _)| n.contains("embed_tokens")).unwrap().1;
    let output = QTensor::quantize(&(embedding * 2.0).unwrap(), GgmlDType::F32).unwrap();
    stored.push(("output.weight".into(), output));
    write(dir.path(), "llama", &stored, &[]);
    assert!(!Checkpoint::open(dir.path()).unwrap().config().tie_word_embeddings);
    for (own, tied) in score(dir.path()).iter().zip(tied) {
        assert!((own - 2.0 * tied).abs() < 1e-4, "{own}, {tied}");
    }
}

#[test]
fn quantised_types_come_close() {
    for (dtype, name, tolerance) in [
        (GgmlDType::F16, "F16", 1e-3),
        (GgmlDType::BF16, "BF16", 1e-2),
        (GgmlDType::Q8_0, "Q8_0", 0.02),
        (GgmlDType::Q5_0, "Q5_0", 0.2),
        (GgmlDType::Q4_0, "Q4_0", 0.4),
        (GgmlDType::Q4_1, "Q4_1", 0.2),
    ] {
        let dir = convert("llama-tied", "llama", dtype);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().stored_dtype(), name);
        let off = distance(dir.path(), "llama-tied");
        assert!(off > 0.0 && off < tolerance, "{name}: {off}");
    }
}

/// Their blocks hold 256 elements, more than a row of the fixtures.
#[test]
fn k_quants_come_close() {
    for (dtype, name) in [(GgmlDType::Q4K, "Q4_K"), (GgmlDType::Q5K, "Q5_K"), (GgmlDType::Q6K, "Q6_K")] {
        let dir = copy("llama-tied");
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let want = Tensor::randn(0f32, 1.0, (4, 256), &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&want, dtype).unwrap();
        write(dir.path(), "llama", &[("token_embd.weight".into(), stored)], &[]);
        let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.stored_dtype(), name);
        let got = checkpoint.tensor("model.embed_tokens.weight", &[4, 256]).unwrap();
        let off = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 0.4, "{name}");
    }
}

#[test]
fn broken_files_are_refused() {
    let dir = convert("llama-tied", "llama", GgmlDType::Q8_0);
    let path = dir.path().join("model.gguf");
    let whole = fs::read(&path).unwrap();
    for length in [0, 3, 20, 200] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(refusal(dir.path()).contains("model.gguf: truncated"), "{length}");
    }
    fs::write(&path, &whole[..whole.len() - 4096]).unwrap();
    let message = RewardModel::load(dir.path()).err().unwrap().to_string();
    assert!(message.contains("model.") && message.contains("bytes"), "{message}");

    write(dir.path(), "llama", &[], &[("general.alignment", &Value::U32(0))]);
    assert!(refusal(dir.path()).contains("model.gguf"));
    write(dir.path(), "gemma", &[], &[]);
    assert!(refusal(dir.path()).contains("\"gemma\""));
    write(dir.path(), "llama", &[], &[]);
    assert!(RewardModel::load(dir.path()).err().unwrap().to_string().contains("missing"));
    fs::copy(&path, dir.path().join("other.gguf")).unwrap();
    assert!(refusal(dir.path()).contains("model.gguf, other.gguf"));
}

#[test]
fn unknown_tensors_are_extra() {
    let dir = copy("llama-tied");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let one =
        QTensor::quantize(&Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32);
    write(dir.path(), "llama", &[("blk.0.attn_sinks.weight".into(), one.unwrap())], &[]);
    let message = Checkpoint::open(dir.path()).unwrap().finish().unwrap_err().to_string();
    assert!(message.contains("blk.0.attn_sinks.weight"), "{message}");
}
