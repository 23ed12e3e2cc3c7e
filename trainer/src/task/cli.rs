//! `qrm-trainer task …`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::problem::{Generator, Problem, Split, events};
use super::rows;
use super::sample::{self, SampleArgs};
use super::slips::{Slip, slip};
use super::start::{self, Shape};
use super::worked;

/// What can be made of the task.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Writes an untrained model with a tokenizer trained for the task.
    Start(StartArgs),
    /// Writes rows for training or evaluation as JSONL.
    Data(DataArgs),
    /// Samples a policy's answers and writes right against wrong ones as JSONL; prints how good the policy was.
    Sample(SampleArgs),
}

/// Flags of `task start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    shape: Shape,
    /// Decides the random weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory to write.
    #[arg(long)]
    output: PathBuf,
}

/// Flags of `task data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// What the rows are.
    #[arg(long, default_value = "answers")]
    rows: Rows,
    /// What they are for: splits share neither stories nor numbers.
    #[arg(long, default_value = "train")]
    split: Split,
    /// How many.
    #[arg(long)]
    count: usize,
    /// Fewest events of a story.
    #[arg(long, default_value_t = 1)]
    fewest_events: usize,
    /// Most events of a story: its difficulty.
    #[arg(long, default_value_t = 4)]
    most_events: usize,
    /// Decides the problems.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write.
    #[arg(long)]
    output: PathBuf,
}

/// Kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rows {
    /// Worked answers, for `sft`.
    Answers,
    /// A worked answer and one with a rule-made slip, for `qrm`, `orm`, `dpo` and `evaluate`; `first_wrong` is the byte of
    /// `rejected` at which it goes wrong.
    Slips,
    /// Right and slipped answers with labelled steps, for `prm`.
    Steps,
}

impl TaskCommand {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Start(args) => start::write(args.shape, args.seed, &args.output),
            Self::Data(args) => args.run(),
            Self::Sample(args) => {
                println!("{}", serde_json::to_string(&sample::sample(&args)?)?);
                Ok(())
            }
        }
    }
}

impl DataArgs {
    fn run(self) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let problems = Generator::new(self.split, events(self.fewest_events, self.most_events)?, self.seed);
        let rows = problems.filter_map(|problem| self.rows.of(&problem, &mut rng)).take(self.count);
        let mut file = BufWriter::new(std::fs::File::create(&self.output)?);
        for row in rows {
            writeln!(file, "{row}")?;
        }
        Ok(file.flush()?)
    }
}

impl Rows {
    fn of(self, problem: &Problem, rng: &mut StdRng) -> Option<Value> {
        let answer = worked::answer(problem, rng);
        let kind = Slip::ALL[rng.random_range(0..Slip::ALL.len())];
        match self {
            Self::Answers => Some(rows::answer(problem, &answer)),
            Self::Slips => rows::pair(problem, &answer, &slip(problem, kind, rng)?),
            Self::Steps => {
                let response = if rng.random_bool(0.5) { answer } else { slip(problem, kind, rng)? };
                Some(rows::steps(problem, &response))
            }
        }
    }
}
