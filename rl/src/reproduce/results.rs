//! What the runs have left behind.

use std::collections::BTreeMap;
use std::path::Path;

use qrm_model::reward::Stats;
use serde_json::Value;

use super::judges::Arm;
use super::plan::{difficulty, stories};
use super::size::Size;
use super::stage::Workshop;

/// Of one difficulty.
pub(super) struct Part {
    pub(super) difficulty: String,
    /// The same in words.
    pub(super) stories: String,
    /// The policy before, on the test problems.
    pub(super) before: Value,
    /// What the reward models were made from, as a policy.
    pub(super) backbone: Value,
    /// As [`super::judges::arms`].
    pub(super) arms: Vec<Trained>,
}

/// The seeds of one arm that are done.
pub(super) struct Trained {
    pub(super) arm: Arm,
    /// Figures on the test problems, by seed.
    pub(super) tests: Vec<Value>,
    /// Pass@1 of sampled answers on the validation problems: by step, by seed.
    pub(super) curve: BTreeMap<usize, Vec<f32>>,
    /// Shares of the wall time that were spent waiting for rewards, by seed.
    pub(super) waiting: Vec<f32>,
    /// How far the policy is from where it started when the last step begins, by seed.
    pub(super) way: Vec<f32>,
}

pub(super) struct Results {
    pub(super) parts: Vec<Part>,
}

impl Results {
    pub(super) fn read(shop: &Workshop, size: &Size, arms: &[Arm]) -> anyhow::Result<Self> {
        let part = |at: &(usize, usize)| -> anyhow::Result<Part> {
            let difficulty = difficulty(*at);
            let trained = |arm: &Arm| -> anyhow::Result<Trained> {
                let mut trained = Trained::new(arm);
                for seed in 0..size.seeds {
                    let run = shop.path(&format!("{difficulty}/{}-{seed}", arm.name()));
                    if let Some(test) = json(&run.with_extension("json"))? {
                        trained.tests.push(test);
                        trained.add(&run.join("metrics.jsonl"))?;
                    }
                }
                Ok(trained)
            };
            let untrained = |name: &str| json(&shop.path(&format!("{difficulty}/{name}.json")));
            Ok(Part {
                before: untrained("sft")?.unwrap_or_default(),
                backbone: untrained("backbone")?.unwrap_or_default(),
                arms: arms.iter().map(trained).collect::<anyhow::Result<_>>()?,
                difficulty,
                stories: stories(*at),
            })
        };
        Ok(Self { parts: size.difficulties.iter().map(part).collect::<anyhow::Result<_>>()? })
    }
}

impl Part {
    /// The arm of the same algorithm that has the outcome model.
    pub(super) fn outcome(&self, algorithm: &str) -> Option<&Trained> {
        self.arms.iter().find(|t| t.arm.algorithm == algorithm && t.arm.judge.name == "orm")
    }
}

impl Trained {
    fn new(arm: &Arm) -> Self {
        let (tests, waiting, way) = (Vec::new(), Vec::new(), Vec::new());
        Self { arm: arm.clone(), tests, curve: BTreeMap::new(), waiting, way }
    }

    /// Reads one seed's metrics.
    fn add(&mut self, metrics: &Path) -> anyhow::Result<()> {
        let (mut waited, mut all, mut way) = (0.0, 0.0, None);
        for row in rows(metrics)? {
            let number = |name: &str| row[name].as_f64();
            if let (Some(pass), Some(step)) = (number("eval/sampled_pass_at_1"), row["step"].as_u64()) {
                self.curve.entry(step as usize).or_default().push(pass as f32);
            }
            waited += number("train/waiting_seconds").unwrap_or(0.0);
            all += number("train/step_seconds").unwrap_or(0.0);
            way = number("train/kl").or(way); // as `--kl absolute` has it
        }
        self.waiting.push((waited / f64::max(all, 1e-9)) as f32);
        self.way.extend(way.map(|way| way as f32));
        Ok(())
    }

    /// A figure of the tests, by seed.
    pub(super) fn test(&self, name: &str) -> Vec<f32> {
        self.tests.iter().filter_map(|test| test[name].as_f64()).map(|x| x as f32).collect()
    }

    /// After the last step on the validation problems, by seed.
    pub(super) fn last(&self) -> &[f32] {
        self.curve.values().next_back().map_or(&[], |seeds| seeds)
    }

    /// The highest point of the average on the validation problems.
    pub(super) fn best(&self) -> Option<f64> {
        self.curve.values().map(|seeds| Stats::of(seeds.iter()).mean).reduce(f64::max)
    }

    /// The first step at which the average is as good.
    pub(super) fn reaches(&self, goal: f64) -> Option<usize> {
        self.curve.iter().find(|(_, seeds)| Stats::of(seeds.iter()).mean >= goal).map(|(step, _)| *step)
    }
}

fn json(path: &Path) -> anyhow::Result<Option<Value>> {
    match path.exists() {
        true => Ok(Some(serde_json::from_str(&std::fs::read_to_string(path)?)?)),
        false => Ok(None),
    }
}

/// Of a JSONL file.
pub(super) fn rows(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}
