//! Answers that a policy samples, told right from wrong: the pairs that reward models learn from.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use qrm_model::RewardModel;
use qrm_model::generation::{Sampling, Settings};
use qrm_model::text::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde_json::Value;

use super::problem::{Generator, Problem, Split, events};
use super::rows;
use super::verifier::{Verdict, common_prefix, verify};
use super::worked;

/// Flags of `task sample`.
#[derive(Debug, Clone, Args)]
pub struct SampleArgs {
    /// The policy: a checkpoint with a vocabulary head.
    #[arg(long)]
    pub model: PathBuf,
    /// What is made of its answers.
    #[arg(long, default_value = "pairs")]
    pub rows: SampledRows,
    /// Where the problems are from.
    #[arg(long, default_value = "train")]
    pub split: Split,
    /// How many problems.
    #[arg(long)]
    pub problems: usize,
    /// Answers to each.
    #[arg(long, default_value_t = 8)]
    pub samples: usize,
    /// Most pairs of one problem.
    #[arg(long, default_value_t = 2)]
    pub pairs: usize,
    /// Where no answer is right, a worked answer is chosen; else such a problem gives no pair.
    #[arg(long)]
    pub worked: bool,
    /// 0 = greedy.
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    pub max_new_tokens: usize,
    /// Fewest events of a story.
    #[arg(long, default_value_t = 1)]
    pub fewest_events: usize,
    /// Most events of a story.
    #[arg(long, default_value_t = 4)]
    pub most_events: usize,
    /// Decides problems and answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// File to write.
    #[arg(long)]
    pub output: PathBuf,
}

/// Kinds of rows made of sampled answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SampledRows {
    /// A right and a wrong answer to one problem. Of the right answers, the one that is the longest the same.
    Pairs,
    /// Answers with labelled steps.
    Steps,
}

/// How good the policy was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sampled {
    /// Answers.
    pub answers: usize,
    /// Share of them that is right to the last byte.
    pub accuracy: f64,
    /// Rows written.
    pub rows: usize,
}

/// Answers that grow side by side: their keys and values, a few hundred MB of a small model, are in memory.
const WIDTH: usize = 256;
/// Problems whose answers are held before they are written.
const CHUNK: usize = 1024;

/// Samples and writes the rows.
pub fn sample(args: &SampleArgs) -> anyhow::Result<Sampled> {
    let policy = RewardModel::load(&args.model)?;
    let settings = Settings {
        sampling: match args.temperature > 0.0 {
            true => Sampling::All { temperature: args.temperature },
            false => Sampling::ArgMax,
        },
        max_new_tokens: args.max_new_tokens,
        width: WIDTH,
        seed: args.seed,
    };
    let events = events(args.fewest_events, args.most_events)?;
    let problems: Vec<Problem> = Generator::new(args.split, events, args.seed).take(args.problems).collect();
    let mut file = BufWriter::new(std::fs::File::create(&args.output)?);
    let mut rng = StdRng::seed_from_u64(args.seed);
    let (mut sampled, mut right) = (Sampled::default(), 0);
    for (chunk, problems) in problems.chunks(CHUNK).enumerate() {
        let settings = Settings { seed: args.seed.wrapping_add(chunk as u64), ..settings.clone() };
        for (problem, answers) in problems.iter().zip(answers(&policy, problems, args.samples, &settings)?) {
            sampled.answers += answers.len();
            let answers = Answers::of(problem, answers.into_iter().flatten());
            right += answers.right_count;
            for row in answers.rows(problem, args, &mut rng) {
                sampled.rows += 1;
                writeln!(file, "{row}")?;
            }
        }
    }
    file.flush()?;
    sampled.accuracy = right as f64 / sampled.answers.max(1) as f64;
    Ok(sampled)
}

/// Texts of the answers; none of one that was cut off.
fn answers(
    policy: &RewardModel,
    problems: &[Problem],
    samples: usize,
    settings: &Settings,
) -> anyhow::Result<Vec<Vec<Option<String>>>> {
    let prompts = problems.iter().map(|problem| -> anyhow::Result<Arc<[u32]>> {
        let message = Message { role: "user".into(), content: problem.question.clone() };
        let prompt = policy.text().render(&[message])?;
        Ok(policy.text().encode(&prompt, false)?.ids.into())
    });
    let prompts = prompts.collect::<anyhow::Result<Vec<_>>>()?;
    let mut all = Vec::with_capacity(problems.len());
    for responses in policy.generate(&prompts, samples, settings)? {
        let text = |r: qrm_model::generation::Response| match r.end.is_some() {
            true => policy.text().decode(&r.response_ids, false).map(Some),
            false => Ok(None),
        };
        all.push(responses.into_iter().map(text).collect::<Result<_, _>>()?);
    }
    Ok(all)
}

/// The different answers to one problem, in the order in which they were sampled: in any other, such as by their letters, the
/// first of the wrong ones would be told from a right one by that order alone.
struct Answers {
    right: Vec<String>,
    wrong: Vec<String>,
    /// Right ones, the same ones counted each time.
    right_count: usize,
}

impl Answers {
    fn of(problem: &Problem, all: impl Iterator<Item = String>) -> Self {
        let mut answers = Self { right: Vec::new(), wrong: Vec::new(), right_count: 0 };
        for answer in all.filter(|answer| !answer.is_empty()) {
            let is_right = verify(problem, &answer) == Verdict::Right;
            answers.right_count += usize::from(is_right);
            let side = if is_right { &mut answers.right } else { &mut answers.wrong };
            if !side.contains(&answer) {
                side.push(answer);
            }
        }
        answers
    }

    fn rows(&self, problem: &Problem, args: &SampleArgs, rng: &mut StdRng) -> Vec<Value> {
        match args.rows {
            SampledRows::Steps => {
                self.right.iter().chain(&self.wrong).map(|answer| rows::steps(problem, answer)).collect()
            }
            SampledRows::Pairs => {
                // As the policy writes: a pair must not be told by its style.
                let worked = (args.worked && self.right.is_empty()).then(|| match args.temperature > 0.0 {
                    true => worked::answer(problem, rng),
                    false => worked::plain(problem),
                });
                let wrong = self.wrong.iter().take(args.pairs);
                let pairs = wrong.filter_map(|wrong| {
                    let right = self.right.iter().chain(&worked);
                    let right = right.max_by_key(|right| common_prefix(right, wrong))?;
                    rows::pair(problem, right, wrong)
                });
                pairs.collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alphabetically, one that begins with a digit comes before one that begins with a word.
    #[test]
    fn a_pair_cannot_be_told_by_the_order_of_its_letters() {
        let problem = Generator::new(Split::Train, 1..=1, 0).next().expect("a problem");
        let right = worked::plain(&problem);
        let words = format!("So {right}");
        let answers = |all: [&str; 5]| Answers::of(&problem, all.into_iter().map(str::to_owned));
        let wrong = ["Thus 1 + 1 = 3\n#### 3", "1 + 1 = 3\n#### 3"];
        let found = answers([wrong[0], &words, wrong[1], &right, wrong[0]]);
        assert_eq!(found.wrong, wrong);
        assert_eq!(found.right, [words.clone(), right.clone()]);
        assert_eq!(found.right_count, 2);
        let found = answers([wrong[1], &right, wrong[0], &words, &right]);
        assert_eq!(found.wrong, [wrong[1], wrong[0]]);
        assert_eq!(found.right, [right, words]);
        assert_eq!(found.right_count, 3);
    }
}
