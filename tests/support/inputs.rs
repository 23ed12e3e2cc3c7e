//! Fixture checkpoints and reproducible random inputs.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Token ids of the fixtures' vocabulary.
pub const VOCABULARY: u32 = 509;

/// Every fixture with a vocabulary head.
pub const VOCAB_FIXTURES: [&str; 6] =
    ["llama-tied", "llama3-rope", "mistral-window", "qwen2", "qwen2-peaked", "qwen3"];

/// Path of a fixture checkpoint.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Copies a fixture's files to `to`, over what is there, as a trainer that has written its next checkpoint would.
pub fn copy(name: &str, to: &Path) {
    for entry in std::fs::read_dir(fixture(name)).expect("a fixture") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// The token that a [`poisoned`] checkpoint fails on.
pub const POISON: u32 = 500;

/// Writes to `to` a fixture with one change: [`POISON`] has an infinite embedding, so that whoever sends it has no finite
/// reward.
pub fn poisoned(name: &str, to: &Path) {
    copy(name, to);
    let weights = to.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let view = SafeTensors::deserialize(&bytes).expect("safetensors");
    let embedding = view.tensor("model.embed_tokens.weight").expect("an embedding");
    let row = POISON as usize * embedding.shape()[1] * size_of::<f32>();
    let at = embedding.data().as_ptr() as usize - bytes.as_ptr() as usize + row;
    bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(weights, bytes).expect("written");
}

/// Its `golden.json`.
pub fn golden(name: &str) -> Value {
    let text = std::fs::read(Path::new(&fixture(name)).join("golden.json")).expect("golden.json");
    serde_json::from_slice(&text).expect("JSON")
}

pub use crate::mutate::Rng;

impl Rng {
    /// One of some.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Token ids.
    pub fn ids(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(VOCABULARY as usize) as u32).collect()
    }

    /// An input of token ids.
    pub fn input(&mut self, prompt: usize, response: usize) -> Value {
        json!({"prompt": self.ids(prompt), "response": self.ids(response)})
    }

    /// A request of `n` inputs with 2 to 40 prompt and 1 to 60 response tokens.
    pub fn request(&mut self, n: usize) -> Value {
        let inputs: Vec<_> = (0..n)
            .map(|_| {
                let (prompt, response) = (2 + self.below(39), 1 + self.below(60));
                self.input(prompt, response)
            })
            .collect();
        json!({"inputs": inputs})
    }
}
