//! Answers that a policy samples, told right from wrong, as rows.

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

use super::pairs::Answers;
use super::problem::{Generator, Problem, Split, events};
use super::rows;
use super::verifier::{Verdict, verify};
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
pub const CHUNK: usize = 1024;

/// How answers are sampled from a small policy; at a temperature of 0, greedily.
pub fn sampling(temperature: f64, max_new_tokens: usize, seed: u64) -> Settings {
    let sampling = match temperature > 0.0 {
        true => Sampling::All { temperature },
        false => Sampling::ArgMax,
    };
    Settings { sampling, max_new_tokens, width: WIDTH, seed }
}

/// Samples and writes the rows.
pub fn sample(args: &SampleArgs) -> anyhow::Result<Sampled> {
    let policy = RewardModel::load(&args.model)?;
    let events = events(args.fewest_events, args.most_events)?;
    let problems: Vec<Problem> = Generator::new(args.split, events, args.seed).take(args.problems).collect();
    let mut file = BufWriter::new(std::fs::File::create(&args.output)?);
    let mut rng = StdRng::seed_from_u64(args.seed);
    let (mut sampled, mut right) = (Sampled::default(), 0);
    for (chunk, problems) in problems.chunks(CHUNK).enumerate() {
        let seed = args.seed.wrapping_add(chunk as u64);
        let settings = sampling(args.temperature, args.max_new_tokens, seed);
        for (problem, answers) in problems.iter().zip(answers(&policy, problems, args.samples, &settings)?) {
            sampled.answers += answers.len();
            let mut told = Answers::default();
            for answer in answers.into_iter().flatten() {
                let is_right = verify(problem, &answer) == Verdict::Right;
                right += usize::from(is_right);
                told.add(answer, is_right);
            }
            for row in made(told, problem, args, &mut rng) {
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

/// What is made of the answers to one problem.
fn made(mut answers: Answers, problem: &Problem, args: &SampleArgs, rng: &mut StdRng) -> Vec<Value> {
    match args.rows {
        SampledRows::Steps => {
            answers.right.iter().chain(&answers.wrong).map(|answer| rows::steps(problem, answer)).collect()
        }
        SampledRows::Pairs => {
            if args.worked && answers.right.is_empty() {
                // As the policy writes: a pair must not be told by its style.
                answers.right.push(match args.temperature > 0.0 {
                    true => worked::answer(problem, rng),
                    false => worked::plain(problem),
                });
            }
            let pairs = answers.pairs(args.pairs);
            pairs.filter_map(|(right, wrong)| rows::pair(problem, right, wrong)).collect()
        }
    }
}
