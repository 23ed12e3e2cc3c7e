//! What an output was made of, in `OUTPUT.job` beside it: a run goes on with its own output only.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qrm_model::{RewardModel, Trajectory};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::ScoreArgs;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    model_version: String,
    reward: Option<String>,
    include: Vec<String>,
    append_eos: bool,
    truncate_prompt: bool,
    /// Of the input, which may have grown since.
    pub(super) rows: usize,
    /// Of these rows' token ids.
    input: String,
}

impl Job {
    pub(super) fn new(args: &ScoreArgs, model: &RewardModel, rows: usize, input: Ids) -> Self {
        Self {
            model_version: model.version().to_owned(),
            reward: args.reward.clone(),
            include: args.include.clone(),
            append_eos: args.append_eos,
            truncate_prompt: args.truncate_prompt,
            rows,
            input: input.name(),
        }
    }

    /// The job of an output that is there.
    pub(super) fn read(output: &Path) -> anyhow::Result<Option<Self>> {
        let path = path(output);
        match std::fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    pub(super) fn write(&self, output: &Path) -> anyhow::Result<()> {
        let path = path(output);
        std::fs::write(&path, serde_json::to_vec(self)?).with_context(|| path.display().to_string())
    }
}

fn path(output: &Path) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(".job");
    path.into()
}

/// The token ids of rows, one after the other, as one name.
#[derive(Clone, Default)]
pub(super) struct Ids(Sha256);

impl Ids {
    pub(super) fn add(&mut self, trajectory: &Trajectory) {
        for ids in [&trajectory.prompt_ids, &trajectory.response_ids] {
            self.0.update(ids.len().to_le_bytes());
            ids.iter().for_each(|id| self.0.update(id.to_le_bytes()));
        }
    }

    fn name(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
