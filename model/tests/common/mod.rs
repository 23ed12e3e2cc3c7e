//! The fixture checkpoints.
#![allow(dead_code)] // each test uses some of it

use std::path::{Path, PathBuf};

/// One of every architecture and head.
pub(crate) const FIXTURES: [&str; 8] = [
    "llama-sequence-classification",
    "llama-tied",
    "llama3-rope",
    "mistral-window",
    "qwen2",
    "qwen2-peaked",
    "qwen2-token-classification",
    "qwen3",
];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}
