//! A loaded reward model: text processing, decoder and head together, and what is to be known of it before a batch comes.
//!
//! - `load`: from a checkpoint's directory to a model, to serve or to train. `reference`: what a DPO policy is read against.
//! - `plan`: a batch checked and laid out. `score`: its scores. `train`: its gradients.
//! - `error`: why there are none.

mod error;
mod load;
mod plan;
mod reference;
mod score;
mod train;

pub use error::ModelError;
pub(crate) use plan::Plan;
pub use score::BatchScores;

use crate::checkpoint::DecoderConfig;
use crate::decoder::Decoder;
use crate::head::Head;
use crate::reward::HeadKind;
use crate::steps::Steps;
use crate::text::TextProcessor;
use crate::training::Parameters;
use reference::Reference;

/// Multiplications of a batch's parts. A DPO policy and its reference do each twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// One token through the linear layers.
    pub per_token: usize,
    /// One query over one key, in all layers.
    pub per_pair: usize,
    /// One response token through the head.
    pub per_row: usize,
}

/// A reward model ready to score. `Send + Sync`; [`RewardModel::score`] spreads over the calling rayon pool.
pub struct RewardModel {
    version: String,
    config: DecoderConfig,
    kind: HeadKind,
    parameters: usize,
    text: TextProcessor,
    pub(crate) decoder: Decoder,
    pub(crate) head: Head,
    trained: Parameters,
    /// Of a step-level model.
    steps: Option<Steps>,
    /// Of a DPO policy.
    reference: Option<Reference>,
    /// Bytes of a number among keys and values.
    kv_size: usize,
}

impl RewardModel {
    /// A short name for the checkpoint's content.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the head gives.
    pub fn head(&self) -> HeadKind {
        self.kind
    }

    /// V: token ids must be below it.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// Whether its output matrix is that of its embeddings.
    pub fn ties_embeddings(&self) -> bool {
        self.config.tie_word_embeddings
    }

    /// The longest P + T the model was made for.
    pub fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// The fewest prompt tokens a trajectory needs: a vocabulary head reads at the position before each response token.
    pub fn min_prompt_tokens(&self) -> usize {
        self.head.lookback()
    }

    /// End of sequence: `tokenizer_config.json`'s `eos_token`, else `config.json`'s. A tokenizer may know tokens that
    /// the weights do not have.
    pub fn eos_token_id(&self) -> Option<u32> {
        let known = |id: &u32| (*id as usize) < self.vocab_size();
        self.text.eos_token_id().filter(known).or(self.config.eos_token_ids.first().copied())
    }

    /// All tokens that end an answer when it is sampled: chat models have several.
    pub(crate) fn ends(&self) -> Vec<u32> {
        self.eos_token_id().into_iter().chain(self.config.eos_token_ids.iter().copied()).collect()
    }

    /// `config.json`'s architecture, for example `Qwen2ForCausalLM`.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }

    /// A step-level model's rewards where the last token of each step is known: `[T]`, of a trajectory's `[T]` logits. None
    /// of other models.
    pub fn step_rewards(&self, last_tokens: &[usize], logit: &[f32]) -> Option<Vec<f32>> {
        self.steps.as_ref().map(|steps| steps.at(last_tokens, logit))
    }

    /// A step-level model under training has the steps it will be served with, whatever it starts from: ended by `separator`,
    /// the scalar squashed by tanh. Nothing to other models.
    pub fn set_steps(&mut self, separator: &str) {
        if let Some(steps) = &mut self.steps {
            *steps = Steps { separator: separator.into(), tanh: true };
        }
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.text
    }

    /// What is trained; empty of a model that is only served.
    pub fn trained(&self) -> &Parameters {
        &self.trained
    }

    /// The decoder's settings.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What a batch costs.
    pub fn work(&self) -> Work {
        let c = &self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let layer = c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size;
        let head = if self.kind.is_vocabulary() { c.vocab_size } else { 1 };
        Work {
            per_token: c.num_hidden_layers * layer,
            per_pair: c.num_hidden_layers * 2 * q,
            per_row: head * c.hidden_size,
        }
    }

    /// Bytes of keys and values that a token leaves in a [`PrefixCache`](crate::PrefixCache).
    pub fn kv_bytes_per_token(&self) -> usize {
        let c = &self.config;
        let own = c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * self.kv_size;
        own + self.reference.as_ref().map_or(0, |reference| reference.policy.kv_bytes_per_token())
    }

    /// Bytes that are free on the GPUs it computes on; none where there is none among its devices.
    pub fn free_gpu_bytes(&self) -> candle_core::Result<Option<usize>> {
        self.decoder.free_gpu_bytes()
    }

    /// Of each layer, those of a DPO reference last: its device, and the width of a token's keys and values.
    #[cfg(feature = "cuda")]
    pub(crate) fn kv_layers(&self) -> Vec<(qrm_kernels::Device, usize)> {
        let width = 2 * self.config.num_key_value_heads * self.config.head_dim;
        let own = self.decoder.devices().map(|device| (device.clone(), width));
        own.chain(self.reference.iter().flat_map(|reference| reference.policy.kv_layers())).collect()
    }
}
