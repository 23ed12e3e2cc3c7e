//! The model that is served: a checkpoint directory, a hub id, or the one that is built in.

use std::sync::Arc;

use anyhow::Context;
use qrm_model::{RewardModel, checkpoint};

use crate::config::Against;

/// Served where no other is named: see `server/default-model/README.md`.
const BUILT_IN: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../default-model/config.json")),
    ("model.safetensors", include_bytes!("../default-model/model.safetensors")),
    ("qrm_config.json", include_bytes!("../default-model/qrm_config.json")),
    ("tokenizer.json", include_bytes!("../default-model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../default-model/tokenizer_config.json")),
];

/// Its name in requests and answers.
const BUILT_IN_NAME: &str = "arithmetic-qrm";

/// Loads a checkpoint directory or hub id, or the built-in model; perhaps to be read against another.
pub(crate) fn load(model: Option<&str>, against: Option<&Against>) -> anyhow::Result<Arc<RewardModel>> {
    let loaded = match model {
        Some(model) => {
            let dir = checkpoint::resolve(model)?;
            let loaded = match against {
                None => RewardModel::load(&dir),
                Some(Against { source, beta }) => {
                    RewardModel::load_against(&dir, &checkpoint::resolve(source)?, *beta)
                }
            };
            loaded.with_context(|| format!("the checkpoint {model} cannot be served"))?
        }
        None if against.is_some() => {
            anyhow::bail!("a reference model is for a model of your own: name it with --model")
        }
        None => built_in().context("the built-in model cannot be loaded")?,
    };
    tracing::info!(
        model = model.unwrap_or(BUILT_IN_NAME),
        architecture = loaded.architecture(),
        head = ?loaded.head(),
        parameters = loaded.parameters(),
        "loaded"
    );
    if model.is_none() {
        tracing::info!(
            "no --model was given: this is the built-in Q-RM, trained on arithmetic word problems of a few steps. \
             It is there to try the service with, not to train on anything else"
        );
    }
    Ok(Arc::new(loaded))
}

/// Checkpoints are read from directories: this one is written to a temporary one and gone once it is loaded.
fn built_in() -> anyhow::Result<RewardModel> {
    let dir = tempfile::tempdir()?;
    for (name, bytes) in BUILT_IN {
        std::fs::write(dir.path().join(name), bytes)?;
    }
    Ok(RewardModel::load(dir.path())?)
}

/// The name a model goes by: the last part of a path or hub id.
pub(crate) fn name(model: Option<&str>) -> String {
    let Some(model) = model else { return BUILT_IN_NAME.into() };
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model).to_owned()
}
