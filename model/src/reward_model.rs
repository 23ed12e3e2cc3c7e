//! A loaded reward model: text processing, decoder and head together.

use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointError, DecoderConfig};
use crate::decoder::Decoder;
use crate::forest::Forest;
use crate::head::Head;
use crate::reward::{HeadKind, TokenScores};
use crate::text::TextProcessor;
use crate::trajectory::Trajectory;

/// Why a batch could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The numeric layer failed.
    #[error("the decoder failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// A trajectory that the caller should have refused.
    #[error("trajectory {index}: {message}")]
    Trajectory {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A score came out infinite or not a number.
    #[error("trajectory {index}: a score is not finite")]
    NotFinite {
        /// Its place in the batch.
        index: usize,
    },
}

/// The scores of one batch, in the order of its trajectories.
#[derive(Debug, Clone)]
pub struct BatchScores {
    /// Per trajectory, `[T]` each.
    pub scores: Vec<TokenScores>,
    /// Per trajectory: tokens computed for it. What it shares counts for the first that has it, so the sum is the
    /// number of unique tokens the decoder ran.
    pub computed_tokens: Vec<usize>,
}

/// A reward model ready to score. `Send + Sync`; [`RewardModel::score`] spreads over the calling rayon pool.
pub struct RewardModel {
    config: DecoderConfig,
    kind: HeadKind,
    parameters: usize,
    text: TextProcessor,
    decoder: Decoder,
    head: Head,
}

impl RewardModel {
    /// Loads a Hugging Face checkpoint directory onto the CPU in f32.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let text = TextProcessor::load(dir)?;
        let mut checkpoint = Checkpoint::open(dir)?;
        let (config, kind) = (checkpoint.config().clone(), checkpoint.head());
        let head = Head::load(&mut checkpoint)?;
        let tied = match &head {
            Head::Vocab(panels) if config.tie_word_embeddings => Some(panels.clone()),
            _ => None,
        };
        let decoder = Decoder::load(&mut checkpoint, tied)?;
        let parameters = checkpoint.parameters();
        checkpoint.finish()?;
        Ok(Self { config, kind, parameters, text, decoder, head })
    }

    /// What the head gives.
    pub fn head(&self) -> HeadKind {
        self.kind
    }

    /// V: token ids must be below it.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// The longest P + T the model was made for.
    pub fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// The fewest prompt tokens a trajectory needs: a vocabulary head reads at the position before each response token.
    pub fn min_prompt_tokens(&self) -> usize {
        self.head.lookback()
    }

    /// End of sequence: `tokenizer_config.json`'s `eos_token`, else `config.json`'s.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.text.eos_token_id().or(self.config.eos_token_id)
    }

    /// `config.json`'s architecture, for example `Qwen2ForCausalLM`.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.text
    }

    /// Scores a batch: lays out the forest, runs the decoder once, reads the head on response positions only.
    pub fn score(&self, batch: &[Trajectory]) -> Result<BatchScores, ModelError> {
        for (index, trajectory) in batch.iter().enumerate() {
            self.check(trajectory).map_err(|message| ModelError::Trajectory { index, message })?;
        }
        let forest = Forest::new(batch);
        let lookback = self.head.lookback();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (i, trajectory) in batch.iter().enumerate() {
            let first = trajectory.prompt_ids.len() - lookback;
            rows.extend_from_slice(&forest.rows(i)[first..trajectory.len() - lookback]);
            targets.extend_from_slice(&trajectory.response_ids);
        }
        let mut all = TokenScores::default();
        if !forest.is_empty() {
            all = self.head.forward(&self.decoder.forward(&forest, &rows)?, &targets)?;
        }
        let mut scores = Vec::with_capacity(batch.len());
        let mut at = 0;
        for (index, trajectory) in batch.iter().enumerate() {
            let end = at + trajectory.response_ids.len();
            let part = all.slice(at..end);
            if !part.is_finite() {
                return Err(ModelError::NotFinite { index });
            }
            scores.push(part);
            at = end;
        }
        Ok(BatchScores { scores, computed_tokens: (0..batch.len()).map(|i| forest.fresh(i)).collect() })
    }

    fn check(&self, t: &Trajectory) -> Result<(), String> {
        if t.response_ids.is_empty() {
            return Err("the response is empty".into());
        }
        if t.prompt_ids.len() < self.head.lookback() {
            return Err("a vocabulary head needs a prompt of at least one token".into());
        }
        if t.len() > self.context_length() {
            return Err(format!("{} tokens, the context holds {}", t.len(), self.context_length()));
        }
        match t.prompt_ids.iter().chain(t.response_ids.iter()).find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(format!("token id {id}, the vocabulary ends at {}", self.vocab_size())),
            None => Ok(()),
        }
    }
}
