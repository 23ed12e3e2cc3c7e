//! What an output was made of, in `OUTPUT.job` beside it: a run goes on with its own output only.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use qrm_model::RewardModel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ScoreArgs;
use crate::device::Devices;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    model_version: String,
    /// What its weights are held in, which is seen in the last digits.
    dtype: String,
    reward: Option<String>,
    include: Vec<String>,
    append_eos: bool,
    truncate_prompt: bool,
    /// Of the input, which may have grown since.
    pub(super) rows: usize,
    /// Of these rows.
    input: String,
}

impl Job {
    pub(super) fn new(
        args: &ScoreArgs,
        model: &RewardModel,
        devices: &Devices,
        rows: usize,
        input: Lines,
    ) -> Self {
        Self {
            model_version: model.version().to_owned(),
            dtype: devices.dtype.clone(),
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
        let partial = path.with_extension("job.partial");
        let write = || -> anyhow::Result<()> {
            std::fs::write(&partial, serde_json::to_vec(self)?)?;
            File::open(&partial)?.sync_all()?;
            Ok(std::fs::rename(&partial, &path)?)
        };
        write().with_context(|| path.display().to_string())
    }
}

fn path(output: &Path) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(".job");
    path.into()
}

/// Rows as they are written, one after the other, as one name.
#[derive(Clone, Default)]
pub(super) struct Lines(Sha256);

impl Lines {
    pub(super) fn add(&mut self, line: &str) {
        self.0.update(line.len().to_le_bytes());
        self.0.update(line);
    }

    fn name(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
