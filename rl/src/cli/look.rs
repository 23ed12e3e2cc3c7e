//! `qrm-rl evaluate` and `sample`.

use std::path::PathBuf;

use clap::Args;
use qrm_model::RewardModel;
use qrm_trainer::task::Split;

use super::{ServerArgs, TaskArgs};
use crate::evaluate::{pass_at_1, pass_at_n};
use crate::rollout::Sampler;
use crate::sample::{Rows, Sample};
use crate::task::Source;

#[derive(Debug, Clone, Args)]
pub(super) struct EvaluateArgs {
    /// Checkpoint with a vocabulary head.
    #[arg(long)]
    policy: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    /// Where the arithmetic task's questions are from.
    #[arg(long, default_value = "test")]
    split: Split,
    /// Questions; default: all rows of `--data`, 1000 of the arithmetic task.
    #[arg(long)]
    questions: Option<usize>,
    /// Sampled answers to each; 0 = greedy only.
    #[arg(long, default_value_t = 0)]
    samples: usize,
    /// Of sampling.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Decides questions and answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Args)]
pub(super) struct SampleArgs {
    /// Checkpoint with a vocabulary head.
    #[arg(long)]
    policy: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    /// Where the arithmetic task's questions are from.
    #[arg(long, default_value = "train")]
    split: Split,
    /// Questions; default: all rows of `--data`, 1000 of the arithmetic task.
    #[arg(long)]
    questions: Option<usize>,
    /// Answers to each.
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// What a row is.
    #[arg(long, default_value = "answers")]
    rows: Rows,
    /// Most pairs of one question.
    #[arg(long, default_value_t = 2)]
    pairs: usize,
    /// Asks the servers what the answers are worth.
    #[arg(long)]
    with_rewards: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// 0 = greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Decides questions and answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write.
    #[arg(long)]
    output: PathBuf,
}

/// As many as are wanted, none of them twice.
fn distinct(source: &Source, wanted: Option<usize>) -> usize {
    match source.count() {
        Some(rows) => wanted.unwrap_or(rows).min(rows),
        None => wanted.unwrap_or(1000),
    }
}

impl EvaluateArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let policy = RewardModel::load(&self.policy)?;
        let mut source = self.task.source(self.split, &policy, self.seed)?;
        let questions = source.take(distinct(&source, self.questions), &policy)?;
        let greedy = pass_at_1(&policy, &questions, self.max_new_tokens)?;
        let mut out = serde_json::json!({"questions": questions.len(), "greedy_pass_at_1": greedy});
        if self.samples > 0 {
            let ks: Vec<usize> = (0..).map(|i| 1 << i).take_while(|k| *k <= self.samples).collect();
            let sampler = Sampler {
                temperature: self.temperature,
                samples: self.samples,
                max_new_tokens: self.max_new_tokens,
            };
            let passes = pass_at_n(&policy, &questions, sampler, &ks, self.seed)?;
            for (k, pass) in ks.iter().zip(passes) {
                out[format!("pass_at_{k}")] = pass.into();
            }
        }
        println!("{out}");
        Ok(())
    }
}

impl SampleArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.with_rewards || self.rows == Rows::Answers,
            "--with-rewards is for --rows answers: a pair has no place for them"
        );
        let policy = RewardModel::load(&self.policy)?;
        let mut source = self.task.source(self.split, &policy, self.seed)?;
        let sampler = Sampler {
            temperature: self.temperature,
            samples: self.samples.max(1),
            max_new_tokens: self.max_new_tokens,
        };
        let server = if self.with_rewards { Some(self.server.connect(&self.policy, false)?) } else { None };
        let job = Sample {
            policy: &policy,
            sampler,
            seed: self.seed,
            rows: self.rows,
            pairs: self.pairs,
            server: server.as_ref(),
        };
        let count = distinct(&source, self.questions);
        let sampled = job.run(&mut source, count, &self.output)?;
        println!("{}", serde_json::to_string(&sampled)?);
        Ok(())
    }
}
