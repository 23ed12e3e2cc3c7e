//! A policy's answers as JSONL: one by one with their rewards, to look at; or right against wrong ones, to train reward
//! models on.

use std::io::{BufWriter, Write};
use std::path::Path;

use qrm_model::RewardModel;
use qrm_trainer::task::pairs::Answers;
use qrm_trainer::task::sample::CHUNK;
use serde_json::{Value, json};

use crate::rewards::{Rewards, Scored};
use crate::rollout::{Answer, Sampler};
use crate::task::{Question, Source};

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rows {
    /// One answer: `messages, response, is_right, finished, tokens`; where a server judges them, `rewards` of its tokens,
    /// `reward`, their name, and `model_version`, whose they are.
    Answers,
    /// A right and a wrong answer to one question, for `qrm-trainer`: `messages, chosen, rejected`.
    Pairs,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Sampled {
    /// Answers.
    pub answers: usize,
    /// Share of them that ends with the right number.
    pub right: f64,
    /// Rows written.
    pub rows: usize,
}

/// How it is done.
pub struct Sample<'a> {
    /// Whose answers they are.
    pub policy: &'a RewardModel,
    /// How they are sampled.
    pub sampler: Sampler,
    /// Decides them.
    pub seed: u64,
    /// What is made of them.
    pub rows: Rows,
    /// Most pairs of one question.
    pub pairs: usize,
    /// What says what they are worth.
    pub server: Option<&'a Rewards>,
}

impl Sample<'_> {
    /// Answers `count` questions and writes the rows.
    pub fn run(&self, source: &mut Source, count: usize, output: &Path) -> anyhow::Result<Sampled> {
        let mut file = BufWriter::new(std::fs::File::create(output)?);
        let (mut sampled, mut right) = (Sampled::default(), 0);
        for first in (0..count).step_by(CHUNK) {
            let questions = source.take(CHUNK.min(count - first), self.policy)?;
            let answers =
                self.sampler.sample(self.policy, &questions, self.seed.wrapping_add(first as u64))?;
            sampled.answers += answers.len();
            right += answers.iter().filter(|a| a.is_right).count();
            let scored = self.server.map(|server| server.score(&answers)).transpose()?;
            let group = self.sampler.samples;
            for (i, (answers, question)) in answers.chunks(group).zip(&questions).enumerate() {
                let rows = match self.rows {
                    Rows::Pairs => pairs(self.policy, question, answers, self.pairs)?,
                    Rows::Answers => {
                        let judged = |k: usize| scored.as_ref().map(|s| (s, &s.rewards[i * group + k]));
                        let of = |(k, answer)| row(self.policy, question, answer, judged(k));
                        answers.iter().enumerate().map(of).collect::<anyhow::Result<_>>()?
                    }
                };
                for row in rows {
                    sampled.rows += 1;
                    writeln!(file, "{row}")?;
                }
            }
        }
        file.flush()?;
        sampled.right = right as f64 / sampled.answers.max(1) as f64;
        Ok(sampled)
    }
}

fn messages(question: &Question) -> Value {
    json!([{"role": "user", "content": question.prompt}])
}

/// Without the end-of-sequence token.
fn text(policy: &RewardModel, answer: &Answer) -> anyhow::Result<String> {
    let end = answer.response_ids.len() - usize::from(answer.finished);
    Ok(policy.text().decode(&answer.response_ids[..end], false)?)
}

fn row(
    policy: &RewardModel,
    question: &Question,
    answer: &Answer,
    judged: Option<(&Scored, &Vec<f32>)>,
) -> anyhow::Result<Value> {
    let tokens = answer.response_ids.iter().map(|id| policy.text().decode(&[*id], false));
    let mut row = json!({
        "messages": messages(question), "response": text(policy, answer)?, "is_right": answer.is_right,
        "finished": answer.finished, "tokens": tokens.collect::<Result<Vec<_>, _>>()?,
    });
    if let Some((scored, rewards)) = judged {
        (row["reward"], row["rewards"]) = (json!(scored.reward), json!(rewards));
        row["model_version"] = json!(scored.model_version);
    }
    Ok(row)
}

/// Finished answers, wrong against right ones.
fn pairs(
    policy: &RewardModel,
    question: &Question,
    answers: &[Answer],
    most: usize,
) -> anyhow::Result<Vec<Value>> {
    let mut told = Answers::default();
    for answer in answers.iter().filter(|a| a.finished) {
        told.add(text(policy, answer)?, answer.is_right);
    }
    let row = |(right, wrong): (&str, &str)| json!({"messages": messages(question), "chosen": right, "rejected": wrong});
    Ok(told.pairs(most).map(row).collect())
}
