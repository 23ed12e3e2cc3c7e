//! Checkpoints: what opens, what is refused and in which words.

mod config;
mod gguf;
mod hostile;
mod hub;
mod safetensors;

use std::fs;
use std::path::{Path, PathBuf};

use qrm_model::Checkpoint;
use serde_json::{Map, Value};
use tempfile::TempDir;

/// A fixture's directory.
fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// A copy of a fixture to spoil.
fn copy(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// Rewrites `config.json`.
fn edit_config(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Why a directory does not open.
fn refusal(dir: &Path) -> String {
    match Checkpoint::open(dir) {
        Ok(_) => panic!("it opened"),
        Err(e) => e.to_string(),
    }
}

/// One tensor's elements.
fn values(checkpoint: &mut Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    checkpoint.tensor(name, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
