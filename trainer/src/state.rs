//! What a killed run goes on from: variables, moments and the number of the step, in `checkpoints/step-N`.
//!
//! The order of the examples and every random choice follow from the seed and the step, so nothing else is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use qrm_model::RewardModel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::export::save;
use crate::files;
use crate::optimizer::AdamW;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: usize,
    /// The flags that decide what the steps do: a run goes on only with the same.
    pub settings: Value,
    /// The step with the best evaluation so far, and how good it was.
    pub best: Option<(usize, f64)>,
}

/// The run's saved states.
#[derive(Debug, Clone)]
pub struct States {
    dir: PathBuf,
    keep: usize,
}

impl States {
    /// In `output/checkpoints`, the newest `keep` of them.
    pub fn new(output: &Path, keep: usize) -> Self {
        Self { dir: output.join("checkpoints"), keep: keep.max(1) }
    }

    /// Saves a state, whole or not at all, and drops the oldest.
    pub fn save(
        &self,
        model: &RewardModel,
        optimizer: &AdamW,
        position: &Position,
    ) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("step-{}", position.step));
        std::fs::create_dir_all(&self.dir)?;
        files::directory(&path, |dir| {
            variables(model, &dir.join("variables.safetensors"))?;
            let moments = model.trained().iter().zip(&optimizer.moments).flat_map(|((name, var), (m, v))| {
                [("m", m), ("v", v)].map(|(kind, values)| {
                    let tensor = Tensor::from_slice(values, var.shape(), &Device::Cpu);
                    tensor.map(|tensor| (format!("{kind}.{name}"), tensor))
                })
            });
            let moments = moments.collect::<candle_core::Result<BTreeMap<_, _>>>()?;
            save(&dir.join("moments.safetensors"), &moments, DType::F32)?;
            Ok(std::fs::write(dir.join("position.json"), serde_json::to_vec_pretty(position)?)?)
        })
        .with_context(|| format!("saving {}", path.display()))?;
        let steps = self.steps()?;
        for step in &steps[..steps.len().saturating_sub(self.keep)] {
            files::remove(&self.dir.join(format!("step-{step}")))?;
        }
        Ok(path)
    }

    /// Fails where another run has left its states: they would be taken for a new run's.
    pub fn none_yet(&self) -> anyhow::Result<()> {
        let dir = self.dir.display();
        anyhow::ensure!(
            self.steps()?.is_empty(),
            "{dir} has the states of an earlier run: --resume goes on with it, another --output begins anew"
        );
        Ok(())
    }

    /// Puts the newest state back; none where there is none. Fails where it is of a run with other `settings`.
    pub fn resume(
        &self,
        settings: &Value,
        model: &RewardModel,
        optimizer: &mut AdamW,
    ) -> anyhow::Result<Option<Position>> {
        match self.steps()?.pop() {
            Some(step) => self.resume_at(step, settings, model, optimizer).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the state of a step back, as [`resume`](Self::resume).
    pub fn resume_at(
        &self,
        step: usize,
        settings: &Value,
        model: &RewardModel,
        optimizer: &mut AdamW,
    ) -> anyhow::Result<Position> {
        let dir = self.dir.join(format!("step-{step}"));
        let mut read = || -> anyhow::Result<Position> {
            let position: Position = serde_json::from_slice(&std::fs::read(dir.join("position.json"))?)?;
            let saved = &position.settings;
            anyhow::ensure!(saved == settings, "this is another run's state: it had {saved}, now {settings}");
            restore(model, &dir.join("variables.safetensors"))?;
            let mut moments = candle_core::safetensors::load(dir.join("moments.safetensors"), &Device::Cpu)?;
            for ((name, _), (m, v)) in model.trained().iter().zip(&mut optimizer.moments) {
                for (kind, values) in [("m", m), ("v", v)] {
                    let tensor = moments.remove(&format!("{kind}.{name}"));
                    let tensor = tensor.with_context(|| format!("no {kind} of {name}"))?;
                    *values = tensor.flatten_all()?.to_vec1()?;
                }
            }
            optimizer.step = position.step;
            Ok(position)
        };
        read().with_context(|| format!("resuming from {}", dir.display()))
    }

    /// The newest state.
    pub fn newest(&self) -> Option<PathBuf> {
        Some(self.dir.join(format!("step-{}", self.steps().ok()?.pop()?)))
    }

    /// Keeps the variables of the best evaluation.
    pub fn save_best(&self, model: &RewardModel, evaluation: &impl Serialize) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        files::directory(&self.dir.join("best"), |dir| {
            variables(model, &dir.join("variables.safetensors"))?;
            Ok(std::fs::write(dir.join("evaluation.json"), serde_json::to_vec_pretty(evaluation)?)?)
        })
    }

    /// Puts the best variables back.
    pub fn restore_best(&self, model: &RewardModel) -> anyhow::Result<()> {
        restore(model, &self.dir.join("best/variables.safetensors"))
    }

    /// The steps that have a state, ascending.
    fn steps(&self) -> anyhow::Result<Vec<usize>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            steps.extend(name.to_str().and_then(|n| n.strip_prefix("step-")?.parse::<usize>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

fn variables(model: &RewardModel, path: &Path) -> anyhow::Result<()> {
    let all = model.trained().iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone()));
    save(path, &all.collect(), DType::F32)
}

fn restore(model: &RewardModel, path: &Path) -> anyhow::Result<()> {
    let mut saved = candle_core::safetensors::load(path, &Device::Cpu)?;
    for (name, var) in model.trained().iter() {
        let tensor = saved.remove(name).with_context(|| format!("{} has no {name}", path.display()))?;
        var.set(&tensor).with_context(|| format!("{name} of {}", path.display()))?;
    }
    Ok(())
}
