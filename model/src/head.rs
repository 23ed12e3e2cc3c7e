//! From hidden states to raw per-token scores.

use std::sync::Arc;

use candle_core::Tensor;
use qrm_kernels::{Panels, linear, token_reward};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::decoder::{pack_error, vector};
use crate::reward::{HeadKind, TokenScores};

/// Names a scalar head's weight goes by.
const SCALAR_NAMES: [&str; 3] = ["score", "v_head", "reward_head"];

/// What turns a hidden state into a number per response token.
pub enum Head {
    /// Logits over the vocabulary, `[V, d]`, read at the position before each response token.
    Vocab(Arc<Panels>),
    /// `v·h + b`, read at each response token's own position.
    Scalar {
        /// `[1, d]`.
        weight: Panels,
        /// `[1]`.
        bias: Option<Vec<f32>>,
    },
}

impl Head {
    /// Takes the head's weights out of a checkpoint.
    pub fn load(checkpoint: &mut Checkpoint) -> Result<Self, CheckpointError> {
        let (d, v) = (checkpoint.config().hidden_size, checkpoint.config().vocab_size);
        if checkpoint.head() == HeadKind::QVocab {
            let name = match checkpoint.config().tie_word_embeddings {
                true => "model.embed_tokens.weight",
                false => "lm_head.weight",
            };
            let weight = checkpoint.tensor(name, &[v, d])?;
            return Ok(Self::Vocab(Arc::new(Panels::pack(&weight).map_err(pack_error)?)));
        }
        let found: Vec<_> = SCALAR_NAMES.iter().filter(|n| checkpoint.has(&format!("{n}.weight"))).collect();
        let [name] = found[..] else {
            return Err(CheckpointError::Weights(format!(
                "a scalar head needs one of score.weight, v_head.weight, reward_head.weight; found {found:?}"
            )));
        };
        let weight = checkpoint.tensor(&format!("{name}.weight"), &[1, d])?;
        let weight = Panels::pack(&weight).map_err(pack_error)?;
        let bias = format!("{name}.bias");
        let bias = if checkpoint.has(&bias) { Some(vector(checkpoint, &bias, 1)?) } else { None };
        Ok(Self::Scalar { weight, bias })
    }

    /// How far before its own position a response token's score is read: 1 for logits, 0 for scalars.
    pub fn lookback(&self) -> usize {
        match self {
            Self::Vocab(_) => 1,
            Self::Scalar { .. } => 0,
        }
    }

    /// Scores of the tokens `targets [N]`, read from `hidden [N, d]`.
    pub fn forward(&self, hidden: &Tensor, targets: &[u32]) -> candle_core::Result<TokenScores> {
        match self {
            Self::Vocab(weight) => {
                let r = token_reward(hidden, weight, targets)?;
                Ok(TokenScores { logit: r.logit, logsumexp: r.logsumexp, max: r.max, entropy: r.entropy })
            }
            Self::Scalar { weight, bias } => {
                let logit = linear(hidden, weight, bias.as_deref(), None)?.flatten_all()?.to_vec1()?;
                Ok(TokenScores { logit, ..TokenScores::default() })
            }
        }
    }
}
