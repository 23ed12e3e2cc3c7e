//! Subcommands and flags.

mod look;
mod train;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use qrm_model::RewardModel;
use qrm_model::text::TextProcessor;
use qrm_trainer::task::Split;
use qrm_trainer::task::problem::events;

use crate::reproduce::ReproduceArgs;
use crate::rewards::{Asked, Rewards};
use crate::settings::Algorithm;
use crate::task::Source;
use look::{EvaluateArgs, SampleArgs};
use train::TrainArgs;

/// PPO, REINFORCE and GRPO with token rewards from a running server.
#[derive(Debug, Parser)]
#[command(name = "qrm-rl", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// REINFORCE: every token is pushed by its own reward, or by its return.
    Reinforce(Box<TrainArgs>),
    /// GRPO: every answer against its group. The loss is the mean over a minibatch's tokens, not first over each answer's.
    Grpo(Box<TrainArgs>),
    /// PPO: with a critic and a clipped ratio.
    Ppo(Box<TrainArgs>),
    /// Pass@1 of greedy answers and Pass@N of sampled ones.
    Evaluate(EvaluateArgs),
    /// A policy's answers as JSONL, with their rewards or as preference pairs.
    Sample(SampleArgs),
    /// From nothing to a table of every reward model under PPO and REINFORCE.
    Reproduce(ReproduceArgs),
}

/// Where questions come from.
#[derive(Debug, Clone, Args)]
struct TaskArgs {
    /// JSONL of `{"prompt" | "question", "answer"}`, the answer's number after `####`; default: the arithmetic task.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Fewest events of a story of the arithmetic task.
    #[arg(long, default_value_t = 1)]
    fewest_events: usize,
    /// Most events of a story: its difficulty.
    #[arg(long, default_value_t = 3)]
    most_events: usize,
}

impl TaskArgs {
    fn source(&self, split: Split, policy: &RewardModel, seed: u64) -> anyhow::Result<Source> {
        match &self.data {
            Some(path) => Source::rows(path, policy, seed),
            None => Ok(Source::arithmetic(split, events(self.fewest_events, self.most_events)?, seed)),
        }
    }
}

/// Which servers are asked, and for what.
#[derive(Debug, Clone, Args)]
struct ServerArgs {
    /// Running servers, `http://host:port` or `grpc://host:port` (`https`, `grpcs`); several take turns.
    #[arg(long, env = "QRM_REWARD_URL", value_delimiter = ',', default_value = "http://127.0.0.1:8080",
          value_parser = address)]
    reward_url: Vec<String>,
    /// Model to ask, where a server has several.
    #[arg(long)]
    reward_model: Option<String>,
    /// Reward to ask for; default: what the server's model was trained for.
    #[arg(long)]
    reward: Option<String>,
    /// Key of the servers.
    #[arg(long, env = "QRM_KEY", hide_env_values = true)]
    key: Option<String>,
    /// PEM of the authority behind the servers' certificates; default: the public ones.
    #[arg(long)]
    reward_ca: Option<PathBuf>,
    /// Seconds to wait for servers that do not answer.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

impl ServerArgs {
    fn asked_for(&self) -> String {
        format!("{:?} of {:?}", self.reward, self.reward_model)
    }

    fn connect(&self, policy: &Path, with_entropy: bool) -> anyhow::Result<Rewards> {
        let asked = Asked {
            model: self.reward_model.clone(),
            reward: self.reward.clone(),
            with_entropy,
            key: self.key.clone(),
            ca: self.reward_ca.as_ref().map(std::fs::read).transpose()?,
        };
        let (urls, policy) = (self.reward_url.clone(), TextProcessor::load(policy)?);
        Ok(Rewards::new(urls, policy, asked, Duration::from_secs(self.patience)))
    }
}

/// A server's, with its protocol: without one, there would be nobody to wait for.
fn address(url: &str) -> Result<String, String> {
    match url.split_once("://") {
        Some(("http" | "https" | "grpc" | "grpcs", host)) if !host.is_empty() => Ok(url.to_owned()),
        _ => Err("it begins with http://, https://, grpc:// or grpcs://".to_owned()),
    }
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Reinforce(args) => args.run(Algorithm::Reinforce),
            Command::Grpo(args) => args.run(Algorithm::Grpo),
            Command::Ppo(args) => args.run(Algorithm::Ppo),
            Command::Evaluate(args) => args.run(),
            Command::Sample(args) => args.run(),
            Command::Reproduce(args) => args.run(),
        }
    }
}
