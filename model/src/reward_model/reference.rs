//! The second policy of a DPO model: its reward is how much likelier the first finds a token.

use std::path::Path;

use super::RewardModel;
use crate::checkpoint::{Checkpoint, CheckpointError, DecoderConfig, QrmConfig};
use crate::placement::Placement;
use crate::reward::HeadKind;

/// What a DPO policy is read against.
pub(super) struct Reference {
    pub(super) beta: f32,
    pub(super) policy: Box<RewardModel>,
}

impl Reference {
    /// The one that a DPO checkpoint has beside it.
    pub(super) fn of(
        dir: &Path,
        qrm: &QrmConfig,
        config: &DecoderConfig,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let beta = qrm.beta.ok_or_else(|| CheckpointError::Config {
            file: "qrm_config.json".into(),
            message: "a dpo reward needs beta".into(),
        })?;
        Self::load(&dir.join(qrm.reference_dir()?), beta, config, placement)
    }

    /// A policy of the same tokens as `config`'s.
    pub(super) fn load(
        dir: &Path,
        beta: f64,
        config: &DecoderConfig,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?;
        let tokens = |c: &DecoderConfig| (c.vocab_size, c.max_position_embeddings);
        if tokens(checkpoint.config()) != tokens(config) || !checkpoint.head().is_vocabulary() {
            let message = "the reference policy has another vocabulary, context or head".into();
            return Err(CheckpointError::Config { file: "config.json".into(), message });
        }
        // One that was trained with DPO itself is a policy all the same.
        let policy = RewardModel::build(dir, checkpoint.as_head(HeadKind::QVocab), None, None, placement)?;
        Ok(Self { beta: beta as f32, policy: Box::new(policy) })
    }
}
