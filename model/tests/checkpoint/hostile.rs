//! Every parser of checkpoints, with bytes that nobody means (`QRM_FUZZ_INPUTS`: how many).

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use qrm_model::Checkpoint;
use qrm_model::text::TextProcessor;
use tempfile::TempDir;

use crate::{fixture, gguf};

#[path = "../../../tests/support/mutate.rs"]
#[allow(unreachable_pub, reason = "another crate's file")]
mod mutate;

/// Enough for an everyday run.
const USUAL: usize = 4_000;

/// In memory where that is to be had: every input is a file.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// Spoils one file of a directory that `prepare` fills, and opens the directory.
fn fuzz(file: &str, seeds: &[Vec<u8>], prepare: impl Fn(&Path), open: impl Fn(&Path) + Sync) {
    let dirs = [directory(), directory()];
    dirs.iter().for_each(|dir| prepare(dir.path()));
    let files: [PathBuf; 2] = [0, 1].map(|i| dirs[i].path().join(file));
    mutate::fuzz(USUAL, seeds, |thread, bytes| {
        fs::write(&files[thread], bytes).unwrap();
        open(dirs[thread].path());
    });
}

fn read(name: &str, file: &str) -> Vec<u8> {
    fs::read(fixture(name).join(file)).unwrap()
}

/// A few numbers under names of a checkpoint.
fn tensors() -> Vec<(String, Tensor)> {
    ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
        .map(|name| (name.to_owned(), Tensor::ones((4, 32), DType::F32, &Device::Cpu).unwrap()))
        .to_vec()
}

fn small(dir: &Path) {
    fs::write(dir.join("config.json"), read("qwen2", "config.json")).unwrap();
    let tensors = tensors().into_iter().collect();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}

/// All tensors of what opens.
fn open(dir: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(dir) {
        let _ = checkpoint.take_all();
    }
}

#[test]
fn config_json() {
    let names = ["llama3-rope", "mistral-window", "qwen2", "qwen3", "llama-sequence-classification"];
    let seeds = names.map(|name| read(name, "config.json"));
    fuzz("config.json", &seeds, small, open);
}

#[test]
fn qrm_config_json() {
    let seeds = [
        r#"{"reward_model": "step", "step_separator": "\n", "activation": "tanh", "stats": {"mean": -0.5, "std": 1.0}}"#,
        r#"{"reward_model": "dpo", "beta": 0.2, "gamma": 2.0, "reference": "reference"}"#,
    ];
    fuzz("qrm_config.json", &seeds.map(|text| text.as_bytes().to_vec()), small, open);
}

#[test]
fn safetensors_files() {
    let dir = directory();
    small(dir.path());
    let seeds = [fs::read(dir.path().join("model.safetensors")).unwrap()];
    fuzz("model.safetensors", &seeds, small, open);
}

#[test]
fn index_json() {
    let seed = br#"{"metadata": {"total_size": 1536}, "weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}}"#;
    let prepare = |dir: &Path| {
        small(dir);
        let file = dir.join("model.safetensors");
        fs::copy(&file, dir.join("a.safetensors")).unwrap();
        fs::rename(&file, dir.join("b.safetensors")).unwrap();
    };
    fuzz("model.safetensors.index.json", &[seed.to_vec()], prepare, open);
}

#[test]
fn gguf_files() {
    let dir = directory();
    let stored = |dtype| {
        let stored = tensors()
            .into_iter()
            .map(|(name, tensor)| (gguf::gguf_name(&name), QTensor::quantize(&tensor, dtype).unwrap()));
        gguf::write(
            dir.path(),
            "qwen2",
            &stored.collect::<Vec<_>>(),
            &[("general.name", &Value::String("x".into()))],
        );
        fs::read(dir.path().join("model.gguf")).unwrap()
    };
    let seeds = [GgmlDType::F32, GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q4_0].map(stored);
    let prepare = |dir: &Path| fs::write(dir.join("config.json"), read("qwen2", "config.json")).unwrap();
    fuzz("model.gguf", &seeds, prepare, open);
}

#[test]
fn tokenizer_config_json() {
    let seed = read("qwen2", "tokenizer_config.json");
    let prepare = |dir: &Path| {
        // A small tokenizer: it is read anew each time.
        let json = r#"{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
        fs::write(dir.join("tokenizer.json"), json).unwrap();
    };
    fuzz("tokenizer_config.json", &[seed], prepare, |dir| {
        let Ok(text) = TextProcessor::load(dir) else { return };
        let message = qrm_model::text::Message { role: "user".into(), content: "a".into() };
        let _ = text.render(&[message]);
    });
}

#[test]
fn tokenizer_json() {
    let seeds = [
        r#"{"version":"1.0","added_tokens":[{"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","vocab":{"a":0,"b":2,"ab":3},"merges":["a b"]}}"#,
        r#"{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"[a-z]+|\\s"},"behavior":"Isolated","invert":false},"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#,
    ];
    let prepare = |dir: &Path| fs::write(dir.join("tokenizer_config.json"), "{}").unwrap();
    fuzz("tokenizer.json", &seeds.map(|text| text.as_bytes().to_vec()), prepare, |dir| {
        let Ok(text) = TextProcessor::load(dir) else { return };
        if let Ok(encoded) = text.encode("ab a 🙂", true) {
            let _ = text.decode(&encoded.ids, false);
        }
    });
}
