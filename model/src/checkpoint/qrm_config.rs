//! `qrm_config.json`, what the checkpoint was trained to be; derived from `architectures` where it is absent.

use serde::Deserialize;

use super::config::architecture;
use super::fields::{FieldError, Fields};
use super::{CheckpointError, QRM_CONFIG};
use crate::reward::HeadKind;

/// What a scalar goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Into (−1, 1).
    Tanh,
}

/// `qrm_config.json`. Every field may be absent, unknown ones are passed over.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct QrmConfig {
    /// What the checkpoint is.
    pub reward_model: Option<HeadKind>,
    /// β of the training objective.
    pub beta: Option<f64>,
    /// What ends a step of the response; a newline where it is absent.
    pub step_separator: Option<String>,
    /// What a step's scalar goes through; nothing where it is absent.
    pub activation: Option<Activation>,
    /// The directory of the reference policy of a `dpo` checkpoint, within its own; `reference` where it is absent.
    pub reference: Option<String>,
}

impl QrmConfig {
    /// The directory of the reference policy of a `dpo` checkpoint, as a name that does not lead out of its own.
    pub(crate) fn reference_dir(&self) -> Result<&str, CheckpointError> {
        let name = self.reference.as_deref().unwrap_or("reference");
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            let message = format!("reference {name:?} is not the name of a directory within this one");
            return Err(CheckpointError::config(QRM_CONFIG, message));
        }
        Ok(name)
    }
}

/// The head that `config.json`'s architecture implies.
pub(super) fn derived_head(config: Fields<'_>) -> Result<HeadKind, FieldError> {
    let name = architecture(config)?
        .ok_or_else(|| "architectures is missing, and no qrm_config.json says what the head is".to_owned())?;
    let head = if name.ends_with("ForCausalLM") {
        return Ok(HeadKind::QVocab);
    } else if name.ends_with("ForTokenClassification") {
        HeadKind::QScalar
    } else if name.ends_with("ForSequenceClassification") {
        HeadKind::Outcome
    } else {
        return Err(format!(
            "architecture {name:?} is no reward model this version knows: \
             ...ForCausalLM, ...ForTokenClassification or ...ForSequenceClassification"
        ));
    };
    match labels(config)? {
        None | Some(1) => Ok(head),
        Some(labels) => Err(format!("{name} with {labels} labels; a reward is one number, one label")),
    }
}

fn labels(config: Fields<'_>) -> Result<Option<usize>, FieldError> {
    match config.size("num_labels", usize::MAX)? {
        Some(labels) => Ok(Some(labels)),
        None => Ok(config.object("id2label")?.map(|labels| labels.0.len())),
    }
}
