//! Where weights come from: a Hugging Face directory with safetensors or GGUF weights, or a hub id.
//!
//! - [`config`]: `config.json`, the decoder's settings; `rope` and `fields` are parts of reading it.
//! - `qrm_config`: `qrm_config.json`, what the checkpoint was trained to be.
//! - `weights`: what `safetensors` and `gguf` have in common.
//! - `hub`: checkpoints by name. `fingerprint`: a name for what they hold.

pub mod config;
mod fields;
mod fingerprint;
mod gguf;
mod hub;
mod qrm_config;
mod rope;
mod safetensors;
mod weights;

use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use config::DecoderConfig;
pub use hub::{Hub, resolve};
pub use qrm_config::{Activation, QrmConfig};
pub(crate) use rope::inv_freq;
pub use safetensors::write_safetensors;

use crate::reward::HeadKind;
use fields::Fields;
use gguf::GgufWeights;
use safetensors::SafetensorsWeights;
use weights::Weights;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const QRM_CONFIG: &str = "qrm_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Names that a scalar head goes by.
pub(crate) const SCALAR_HEADS: [&str; 3] = ["score", "v_head", "reward_head"];

/// Why a checkpoint was refused. Messages name the tensor or field at fault.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or unreadable.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not say what it must.
    #[error("{file}: {message}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// The weights do not fit the config.
    #[error("weights: {0}")]
    Weights(String),
    /// A hub repository could not be fetched.
    #[error("model {model:?}: {message}")]
    Hub {
        /// As it was asked for.
        model: String,
        /// Why.
        message: String,
    },
    /// Tokenizer or chat template.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
}

impl CheckpointError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    fn config(file: &str, message: String) -> Self {
        Self::Config { file: file.into(), message }
    }
}

/// An opened checkpoint: configuration read, weights mapped but not yet taken.
pub struct Checkpoint {
    dir: PathBuf,
    config: DecoderConfig,
    qrm_config: QrmConfig,
    head: HeadKind,
    weights: Box<dyn Weights>,
    /// Elements taken so far.
    parameters: usize,
}

impl Checkpoint {
    /// Opens a directory: one of the user's, or what [`resolve`] gives.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let json: Map<String, Value> = read_json(&dir.join(CONFIG))?;
        let fields = Fields(&json);
        let mut config = DecoderConfig::read(fields).map_err(|e| CheckpointError::config(CONFIG, e))?;
        let path = dir.join(GENERATION_CONFIG);
        if path.exists() {
            // How it samples is no reason not to score with it.
            let generation: Map<String, Value> = read_json(&path).unwrap_or_default();
            let ends = config::eos_token_ids(Fields(&generation), config.vocab_size).unwrap_or_default();
            config.eos_token_ids.extend(ends);
        }
        let path = dir.join(QRM_CONFIG);
        let qrm_config: QrmConfig = if path.exists() { read_json(&path)? } else { QrmConfig::default() };
        let head = match qrm_config.reward_model {
            Some(head) => head,
            None => qrm_config::derived_head(fields).map_err(|e| CheckpointError::config(CONFIG, e))?,
        };
        let weights = open_weights(dir, config.head_dim)?;
        config.tie_word_embeddings &= !weights.has_own_output();
        Ok(Self { dir: dir.to_owned(), config, qrm_config, head, weights, parameters: 0 })
    }

    /// A short name for what the files hold, the same wherever they lie.
    pub fn fingerprint(&self) -> Result<String, CheckpointError> {
        let broken = |source| CheckpointError::Io { path: self.dir.display().to_string(), source };
        fingerprint::fingerprint(&self.dir).map_err(broken)
    }

    /// The decoder's settings.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `qrm_config.json`; all absent where there is none.
    pub fn qrm_config(&self) -> &QrmConfig {
        &self.qrm_config
    }

    /// What the head is.
    pub fn head(&self) -> HeadKind {
        self.head
    }

    /// The same checkpoint read as another kind of reward model: what training starts from.
    pub fn as_head(mut self, head: HeadKind) -> Self {
        self.head = head;
        self
    }

    /// The same checkpoint read as what a value function starts from: a scalar head, and none of its own.
    pub(crate) fn for_critic(mut self) -> Self {
        let own = SCALAR_HEADS.iter().flat_map(|name| [format!("{name}.weight"), format!("{name}.bias")]);
        own.for_each(|name| self.weights.skip(&name));
        self.as_head(HeadKind::QScalar)
    }

    /// The type most weights are stored in: `F32`, `BF16`, `Q4_1`, ...
    pub fn stored_dtype(&self) -> &str {
        self.weights.stored_dtype()
    }

    /// Number of weights taken so far.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Takes one weight as a contiguous f32 CPU tensor of exactly `shape`, converted from whatever is stored.
    /// Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), for GGUF too. A weight is taken once.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        self.check(name, shape)?;
        let values = self.weights.take(name)?;
        self.parameters += values.len();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu);
        tensor.map_err(|e| CheckpointError::Weights(format!("{name}: {e}")))
    }

    /// Whether a weight is there, and of `shape`.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), CheckpointError> {
        let broken = |message| Err(CheckpointError::Weights(format!("{name}: {message}")));
        match self.weights.shape(name) {
            None => broken("missing".to_owned()),
            Some(stored) if stored != shape => {
                broken(format!("shape {stored:?}, the config asks for {shape:?}"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Takes one weight without reading it: it is had from elsewhere.
    pub(crate) fn skip(&mut self, name: &str, shape: &[usize]) -> Result<(), CheckpointError> {
        self.check(name, shape)?;
        self.weights.skip(name);
        self.parameters += shape.iter().product::<usize>();
        Ok(())
    }

    /// Everything that is stored and not taken yet, by Hugging Face name.
    pub fn take_all(mut self) -> Result<Vec<(String, Tensor)>, CheckpointError> {
        let names: Vec<_> = self.weights.left().into_iter().map(str::to_owned).collect();
        let take = |name: String| {
            let shape = self.weights.shape(&name).unwrap_or_default().to_vec();
            let tensor = self.tensor(&name, &shape)?;
            Ok((name, tensor))
        };
        names.into_iter().map(take).collect()
    }

    /// Whether the weights hold `name`, not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.weights.shape(name).is_some()
    }

    /// Errors naming every stored tensor that nobody took (buffers such as `rotary_emb.inv_freq` excepted).
    pub fn finish(self) -> Result<(), CheckpointError> {
        // A copy of the tied embedding, or what a scalar head leaves of the causal model it was made from.
        let spare_lm_head = self.config.tie_word_embeddings || !self.head.is_vocabulary();
        let expected =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || (spare_lm_head && name == "lm_head.weight");
        let extra: Vec<_> = self.weights.left().into_iter().filter(|name| !expected(name)).collect();
        match extra.is_empty() {
            true => Ok(()),
            false => Err(CheckpointError::Weights(format!(
                "tensors that {} has no use for: {}",
                self.config.architecture,
                extra.join(", ")
            ))),
        }
    }
}

/// The weights in a directory: safetensors first, as `transformers` looks for them.
fn open_weights(dir: &Path, head_dim: usize) -> Result<Box<dyn Weights>, CheckpointError> {
    if dir.join(SINGLE).exists() {
        return Ok(Box::new(SafetensorsWeights::single(dir, SINGLE)?));
    }
    if dir.join(INDEX).exists() {
        return Ok(Box::new(SafetensorsWeights::sharded(dir)?));
    }
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|source| CheckpointError::io(dir, source))?;
    let files: Vec<_> = entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let file = only_gguf(files.iter().map(String::as_str)).map_err(CheckpointError::Weights)?;
    Ok(Box::new(GgufWeights::open(dir, file, head_dim)?))
}

/// The one GGUF file among others.
fn only_gguf<'a>(files: impl Iterator<Item = &'a str>) -> Result<&'a str, String> {
    let mut found: Vec<_> = files.filter(|file| file.ends_with(".gguf")).collect();
    found.sort_unstable();
    match found[..] {
        [file] => Ok(file),
        [] => Err(format!("neither {SINGLE}, {INDEX} nor a .gguf file")),
        _ => Err(format!("several .gguf files, keep one of {}", found.join(", "))),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::io(path, source))?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    serde_json::from_slice(&bytes).map_err(|e| CheckpointError::config(&file, e.to_string()))
}
