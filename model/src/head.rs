//! From hidden states to raw per-token scores.

use candle_core::{Result, Tensor};
use qrm_kernels::{Rows, Weight, linear, token_logits};

use crate::checkpoint::{CheckpointError, SCALAR_HEADS};
use crate::decoder::{EMBEDDING, Embedding};
use crate::loader::Loader;
use crate::reward::{HeadKind, TokenScores};

/// What turns a hidden state into a number per response token.
pub enum Head {
    /// Logits over the vocabulary, `[V, d]`, read at the position before each response token.
    Vocab(Weight),
    /// `v·h + b`, read at each response token's own position.
    Scalar {
        /// `[1, d]`.
        weight: Weight,
        /// `[1]`.
        bias: Option<Tensor>,
    },
}

impl Head {
    /// Takes the head's weights. Training may start a scalar head from a checkpoint that has none.
    pub(crate) fn load(loader: &mut Loader<'_>) -> std::result::Result<Self, CheckpointError> {
        let checkpoint = loader.checkpoint();
        let (d, v) = (checkpoint.config().hidden_size, checkpoint.config().vocab_size);
        if checkpoint.head().is_vocabulary() {
            let name = match checkpoint.config().tie_word_embeddings {
                true => EMBEDDING,
                false => "lm_head.weight",
            };
            return Ok(Self::Vocab(loader.weight(name, [v, d])?));
        }
        let found = SCALAR_HEADS.iter().filter(|name| checkpoint.has(&format!("{name}.weight")));
        let name = match found.collect::<Vec<_>>()[..] {
            [name] => *name,
            [] if loader.is_training() => {
                // `…ForTokenClassification` has a bias, `…ForSequenceClassification` none.
                let with_bias = checkpoint.head() != HeadKind::Outcome;
                let weight = Weight::Trained(loader.noise("score.weight", [1, d])?);
                let bias = if with_bias { Some(loader.zeros("score.bias", &[1])?) } else { None };
                return Ok(Self::Scalar { weight, bias });
            }
            ref found => {
                return Err(CheckpointError::Weights(format!(
                    "a scalar head needs one of score.weight, v_head.weight, reward_head.weight; found {found:?}"
                )));
            }
        };
        let bias = format!("{name}.bias");
        let bias = if checkpoint.has(&bias) { Some(loader.tensor(&bias, &[1])?) } else { None };
        Ok(Self::Scalar { weight: loader.scalar(&format!("{name}.weight"), d)?, bias })
    }

    /// The embeddings of a decoder that ties them to this head.
    pub(crate) fn embedding(&self) -> Option<Embedding> {
        match self {
            Self::Vocab(Weight::Packed(panels)) => Some(Embedding::Tied(panels.clone())),
            Self::Vocab(Weight::Trained(weight)) => Some(Embedding::Matrix(weight.clone())),
            #[cfg(feature = "cuda")]
            Self::Vocab(Weight::Cuda(weight)) => Some(Embedding::Cuda(weight.clone())),
            Self::Scalar { .. } => None,
        }
    }

    /// How far before its own position a response token's score is read: 1 for logits, 0 for scalars.
    pub fn lookback(&self) -> usize {
        match self {
            Self::Vocab(_) => 1,
            Self::Scalar { .. } => 0,
        }
    }

    /// Scores of the tokens `targets [N]`, read from `hidden [N, d]`.
    pub(crate) fn forward(&self, hidden: &Rows, targets: &[u32]) -> Result<TokenScores> {
        match self {
            Self::Vocab(weight) => {
                let r = hidden.token_reward(weight, targets)?;
                Ok(TokenScores {
                    logit: r.logit,
                    logsumexp: r.logsumexp,
                    max: r.max,
                    entropy: r.entropy,
                    own: Vec::new(),
                })
            }
            Self::Scalar { weight, bias } => {
                let logit = hidden.scalar(weight, bias.as_ref())?;
                Ok(TokenScores { logit, ..TokenScores::default() })
            }
        }
    }

    /// The same followed by autograd: `[logit, logsumexp, entropy]` of a vocabulary head, `[N, 3]`; `[N, 1]` of a scalar
    /// head.
    pub(crate) fn tracked(&self, hidden: &Tensor, targets: &[u32]) -> Result<Tensor> {
        match self {
            Self::Vocab(weight) => token_logits(hidden, weight, targets),
            Self::Scalar { weight, bias } => linear(hidden, weight, bias.as_ref(), None),
        }
    }
}
