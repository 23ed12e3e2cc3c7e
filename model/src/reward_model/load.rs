//! From a checkpoint's directory to a model.

use std::path::Path;

use super::RewardModel;
use super::reference::Reference;
use crate::checkpoint::{Activation, Checkpoint, CheckpointError};
use crate::decoder::{Decoder, EMBEDDING};
use crate::head::Head;
use crate::loader::Loader;
use crate::placement::Placement;
use crate::reward::HeadKind;
use crate::steps::Steps;
use crate::text::TextProcessor;
use crate::training::Method;

/// β where neither the checkpoint nor the caller says one: what DPO is usually trained with.
const USUAL_BETA: f64 = 0.1;

impl RewardModel {
    /// Loads a Hugging Face checkpoint directory onto the CPU in f32.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        Self::load_on(dir, &Placement::default())
    }

    /// The same onto other devices.
    pub fn load_on(dir: &Path, placement: &Placement) -> Result<Self, CheckpointError> {
        Self::build(dir, Checkpoint::open(dir)?, None, None, placement)
    }

    /// Loads a policy to be read against another of the same tokens: a DPO reward model, whatever the checkpoint says that
    /// it is. `beta` defaults to the checkpoint's, else 0.1.
    pub fn load_against(
        dir: &Path,
        reference: &Path,
        beta: Option<f64>,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.as_head(HeadKind::Dpo);
        let beta = beta.or(checkpoint.qrm_config().beta).unwrap_or(USUAL_BETA);
        let reference = Reference::load(reference, beta, checkpoint.config(), placement)?;
        Self::build(dir, checkpoint, None, Some(reference), placement)
    }

    /// Loads a checkpoint to be trained as a reward model of `kind`. A scalar head that the checkpoint does not have
    /// is made from `seed`, as adapters are.
    pub fn load_for_training(
        dir: &Path,
        kind: HeadKind,
        method: &Method,
        seed: u64,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.as_head(kind);
        Self::build(dir, checkpoint, Some((method, seed)), None, &Placement::default())
    }

    /// A value function to train: the decoder of any checkpoint, all of it, under a scalar head that `seed` makes. A reward
    /// model's own head would speak of rewards before they are scaled.
    pub fn load_critic(dir: &Path, seed: u64) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.for_critic();
        Self::build(dir, checkpoint, Some((&Method::Full, seed)), None, &Placement::default())
    }

    pub(super) fn build(
        dir: &Path,
        mut checkpoint: Checkpoint,
        training: Option<(&Method, u64)>,
        reference: Option<Reference>,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let text = TextProcessor::load(dir)?;
        let (config, kind) = (checkpoint.config().clone(), checkpoint.head());
        let mut version = checkpoint.fingerprint()?;
        let mut loader = match training {
            None => Loader::fixed(&mut checkpoint, placement.quantized(&version)?),
            Some((method, seed)) => Loader::training(&mut checkpoint, method, seed),
        };
        if config.tie_word_embeddings && kind.is_vocabulary() && !placement.first().is(placement.last()) {
            loader.share(EMBEDDING);
        }
        loader.onto(placement.last());
        let head = Head::load(&mut loader)?;
        let tied = if config.tie_word_embeddings { head.embedding() } else { None };
        let decoder = Decoder::load(&mut loader, tied, placement)?;
        let trained = loader.finish()?;
        let parameters = checkpoint.parameters();
        let steps = (kind == HeadKind::Step).then(|| Steps {
            separator: checkpoint.qrm_config().step_separator.clone().unwrap_or_else(|| "\n".into()),
            tanh: checkpoint.qrm_config().activation == Some(Activation::Tanh),
        });
        let reference = match (reference, training) {
            (None, None) if kind == HeadKind::Dpo => {
                Some(Reference::of(dir, checkpoint.qrm_config(), &config, placement)?)
            }
            (reference, _) => reference,
        };
        if let Some(reference) = &reference {
            version = format!("{version}-{}", reference.policy.version);
        }
        checkpoint.finish()?;
        let kv_size = placement.kv_size();
        Ok(Self {
            version,
            config,
            kind,
            parameters,
            text,
            decoder,
            head,
            trained,
            steps,
            reference,
            kv_size,
        })
    }
}
