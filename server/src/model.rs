//! The model that is served: a checkpoint directory, a hub id, or the one that is built in; and its name.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use qrm_kernels::Cores;
use qrm_model::{Placement, RewardModel, checkpoint};

use crate::device::Devices;

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

/// A checkpoint and the name it is served under.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NamedModel {
    pub(crate) name: String,
    /// Directory or hub id; none: built in.
    pub(crate) source: Option<String>,
    pub(crate) against: Option<Against>,
}

/// What a policy is read against.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Against {
    /// Directory or hub id.
    pub(crate) source: String,
    pub(crate) beta: Option<f64>,
}

impl FromStr for NamedModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = match text.split_once('=') {
            Some((name, source)) if !name.contains('/') => (name.to_owned(), source),
            _ => (name(Some(text)), text),
        };
        match name.is_empty() || source.is_empty() {
            true => Err("a checkpoint, or name=checkpoint".into()),
            false => Ok(Self { name, source: Some(source.to_owned()), against: None }),
        }
    }
}

/// The same weights, once for each placement.
pub(crate) struct Copies {
    pub(crate) first: Placed,
    others: Vec<Placed>,
}

/// The weights of one placement, and whose threads run it.
pub(crate) struct Placed {
    pub(crate) model: Arc<RewardModel>,
    pub(crate) cores: Cores,
}

impl Copies {
    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Placed> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// Loads a checkpoint directory or hub id, or the built-in model, onto every placement; perhaps to be read against another.
pub(crate) fn load(
    model: Option<&str>,
    against: Option<&Against>,
    devices: &Devices,
) -> anyhow::Result<Copies> {
    let mut placements = devices.placements.iter();
    let first = placements.next().context("no device")?;
    let load = |placement: &Placement, cores: &Cores| match cores.are_chosen() {
        // By threads that are there, so that the memory is near them.
        true => {
            let pool = cores.pool(cores.count(), |i| format!("load-{i}"))?;
            pool.install(|| load_on(model, against, placement))
        }
        false => load_on(model, against, placement),
    };
    let cores = first.cores();
    let mut copies = Copies { first: Placed { model: load(first, &cores)?, cores }, others: Vec::new() };
    for placement in placements {
        // Workers on the same CPUs read the same memory.
        let cores = placement.cores();
        let same = copies.iter().find(|copy| placement.is_cpu() && copy.cores == cores);
        let model = match same {
            Some(copy) => copy.model.clone(),
            None => load(placement, &cores)?,
        };
        copies.others.push(Placed { model, cores });
    }
    Ok(copies)
}

fn load_on(
    model: Option<&str>,
    against: Option<&Against>,
    placement: &Placement,
) -> anyhow::Result<Arc<RewardModel>> {
    let loaded = match model {
        Some(model) => {
            let dir = checkpoint::resolve(model)?;
            let loaded = match against {
                None => RewardModel::load_on(&dir, placement),
                Some(Against { source, beta }) => {
                    RewardModel::load_against(&dir, &checkpoint::resolve(source)?, *beta, placement)
                }
            };
            loaded.with_context(|| format!("the checkpoint {model} cannot be served"))?
        }
        None if against.is_some() => {
            anyhow::bail!("a reference model is for a model of your own: name it with --model")
        }
        None => built_in(placement).context("the built-in model cannot be loaded")?,
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
fn built_in(placement: &Placement) -> anyhow::Result<RewardModel> {
    let dir = tempfile::tempdir()?;
    for (name, bytes) in BUILT_IN {
        std::fs::write(dir.path().join(name), bytes)?;
    }
    Ok(RewardModel::load_on(dir.path(), placement)?)
}

/// The name a model goes by: the last part of a path or hub id.
pub(crate) fn name(model: Option<&str>) -> String {
    let Some(model) = model else { return BUILT_IN_NAME.into() };
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model).to_owned()
}
