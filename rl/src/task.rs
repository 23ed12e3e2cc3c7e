//! Prompts whose answers can be checked: the trainer's arithmetic, or rows of `{"prompt", "answer"}` in GSM8K's form.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use qrm_model::RewardModel;
use qrm_model::text::Message;
use qrm_trainer::task::problem::Generator;
use qrm_trainer::task::verifier::final_answer;
use qrm_trainer::task::{Problem, Split};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Deserialize;

/// A prompt and the number that its answer ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// As it was asked.
    pub prompt: String,
    /// Tokens, through the chat template.
    pub prompt_ids: Arc<[u32]>,
    /// What has to stand after `####`.
    pub answer: i64,
}

#[derive(Deserialize)]
struct Row {
    #[serde(alias = "question")]
    prompt: String,
    answer: String,
}

impl Question {
    fn new(policy: &RewardModel, prompt: String, answer: i64) -> anyhow::Result<Self> {
        let text = policy.text().render(&[Message { role: "user".into(), content: prompt.clone() }])?;
        Ok(Self { prompt, prompt_ids: policy.text().encode(&text, false)?.ids.into(), answer })
    }

    /// Whether an answer's text ends with the number.
    pub fn is_right(&self, answer: &str) -> bool {
        final_answer(answer) == Some(self.answer)
    }
}

/// Where questions come from.
pub enum Source {
    /// Made as they are needed.
    Arithmetic(Box<Generator>),
    /// Of a file, each once before any comes again.
    Rows(Box<Rows>),
}

/// Questions of a file, in a new order each time round.
pub struct Rows {
    questions: Vec<Question>,
    next: usize,
    rng: StdRng,
}

impl Source {
    /// The arithmetic task: stories of so many events.
    pub fn arithmetic(split: Split, events: std::ops::RangeInclusive<usize>, seed: u64) -> Self {
        Self::Arithmetic(Box::new(Generator::new(split, events, seed)))
    }

    /// A JSONL file of `{"prompt" | "question", "answer"}`; the answer's number is what follows its last `####`, else all of it.
    pub fn rows(path: &Path, policy: &RewardModel, seed: u64) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut questions = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = || format!("{}, line {}", path.display(), i + 1);
            let row: Row = serde_json::from_str(line).with_context(at)?;
            let number = row.answer.trim().replace(',', "").parse().ok();
            let answer = final_answer(&row.answer)
                .or(number)
                .with_context(|| format!("{}: no number in the answer", at()))?;
            questions.push(Question::new(policy, row.prompt, answer)?);
        }
        anyhow::ensure!(!questions.is_empty(), "{} has no row", path.display());
        Ok(Self::Rows(Box::new(Rows { questions, next: 0, rng: StdRng::seed_from_u64(seed) })))
    }

    /// How many there are before one comes again; none: no end of them.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Arithmetic(_) => None,
            Self::Rows(rows) => Some(rows.questions.len()),
        }
    }

    /// The next `count`.
    pub fn take(&mut self, count: usize, policy: &RewardModel) -> anyhow::Result<Vec<Question>> {
        match self {
            Self::Arithmetic(generator) => {
                let of = |problem: Problem| {
                    let answer = problem.result();
                    Question::new(policy, problem.question, answer)
                };
                generator.take(count).map(of).collect()
            }
            Self::Rows(rows) => Ok((0..count).map(|_| rows.next()).collect()),
        }
    }
}

impl Rows {
    fn next(&mut self) -> Question {
        if self.next == 0 {
            self.questions.shuffle(&mut self.rng);
        }
        let question = self.questions[self.next].clone();
        self.next = (self.next + 1) % self.questions.len();
        question
    }
}
