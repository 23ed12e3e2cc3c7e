//! Subcommands and flags.

mod evaluate;
mod train;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::run::TrainArgs;
use crate::task::cli::TaskCommand;
use evaluate::EvaluateArgs;
use train::{DpoArgs, OrmArgs, PrmArgs, QrmArgs};

/// Trains token-reward models, and those they are compared with, from JSONL files.
#[derive(Debug, Parser)]
#[command(name = "qrm-trainer", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Language modelling of answers: rows of {prompt | messages, response}.
    Sft(TrainArgs),
    /// Q-RM from pairs: rows of {prompt | messages, chosen, rejected}.
    Qrm(QrmArgs),
    /// Outcome reward model from pairs (Bradley-Terry on the last token).
    Orm(OrmArgs),
    /// Step-level reward model: rows of {prompt | messages, response, steps}.
    Prm(PrmArgs),
    /// DPO from pairs: a policy whose log-ratio to its start is a reward.
    Dpo(DpoArgs),
    /// The arithmetic task: an untrained model, problems, answers with mistakes.
    #[command(subcommand)]
    Task(TaskCommand),
    /// Preference accuracy, margin, entropy and calibration of a checkpoint on pairs, as JSON.
    Evaluate(EvaluateArgs),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Sft(args) => train::sft(args),
            Command::Qrm(args) => args.run(),
            Command::Orm(args) => args.run(),
            Command::Prm(args) => args.run(),
            Command::Dpo(args) => args.run(),
            Command::Task(command) => command.run(),
            Command::Evaluate(args) => args.run(),
        }
    }
}

fn threads(threads: usize) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting the threads")
}
