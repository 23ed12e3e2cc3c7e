//! `qrm-trainer sft`, `qrm`, `orm`, `prm` and `dpo`: what each adds to the flags of all training.

use clap::{Args, ValueEnum};
use qrm_model::RewardKind;
use qrm_model::reward::HeadKind;

use super::threads;
use crate::data::Kind;
use crate::evaluate::Score;
use crate::objective::{Objective, Preference};
use crate::run::{Run, TrainArgs};
use crate::workers::Workers;

#[derive(Debug, Clone, Args)]
pub(super) struct QrmArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// Logits over the vocabulary, or one scalar per token.
    #[arg(long, default_value = "vocab")]
    head: QrmHead,
    /// β of the loss.
    #[arg(long, default_value_t = 0.2)]
    beta: f64,
    /// γ of the loss, the margin aimed at.
    #[arg(long, default_value_t = 2.0)]
    gamma: f64,
    /// γ falls to 0 over the run.
    #[arg(long)]
    gamma_decay: bool,
    /// Share of pairs taken to be labelled the wrong way round.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
    /// Adds this much of the chosen answers' cross entropy to the loss, which keeps log φ meaningful; vocabulary head.
    #[arg(long, default_value_t = 0.0)]
    sft_weight: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum QrmHead {
    Vocab,
    Scalar,
}

#[derive(Debug, Clone, Args)]
pub(super) struct OrmArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// Share of pairs taken to be labelled the wrong way round.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
}

#[derive(Debug, Clone, Args)]
pub(super) struct PrmArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// What ends a step when the model is served, written as within a JSON string.
    #[arg(long, default_value = "\\n", value_parser = unescaped)]
    step_separator: String,
}

#[derive(Debug, Clone, Args)]
pub(super) struct DpoArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// β of the loss.
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// Share of pairs taken to be labelled the wrong way round.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
}

pub(super) fn sft(args: TrainArgs) -> anyhow::Result<()> {
    start(run(args, HeadKind::QVocab, Objective::Sft, Score::Served(RewardKind::Logit), Kind::Answers))
}

impl QrmArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let head = match self.head {
            QrmHead::Vocab => HeadKind::QVocab,
            QrmHead::Scalar => HeadKind::QScalar,
        };
        let (beta, gamma, label_smoothing, sft) =
            (self.beta, self.gamma, self.label_smoothing, self.sft_weight);
        anyhow::ensure!(sft == 0.0 || head.is_vocabulary(), "--sft-weight is for a vocabulary head");
        let objective = Objective::Qrm(Preference { beta, gamma, label_smoothing, sft });
        let run = run(self.train, head, objective, Score::Served(RewardKind::Logit), Kind::Pairs);
        start(Run { gamma_decay: self.gamma_decay, ..run })
    }
}

impl OrmArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let label_smoothing = self.label_smoothing;
        let loss = Preference { beta: 1.0, gamma: 0.0, label_smoothing, sft: 0.0 };
        start(run(
            self.train,
            HeadKind::Outcome,
            Objective::Outcome(loss),
            Score::Served(RewardKind::Outcome),
            Kind::Pairs,
        ))
    }
}

impl PrmArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let run =
            run(self.train, HeadKind::Step, Objective::Step, Score::Served(RewardKind::Step), Kind::Steps);
        start(Run { step_separator: self.step_separator, ..run })
    }
}

impl DpoArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (beta, label_smoothing) = (self.beta, self.label_smoothing);
        let loss = Preference { beta, gamma: 0.0, label_smoothing, sft: 0.0 };
        start(run(self.train, HeadKind::Dpo, Objective::Dpo(loss), Score::LogRatio, Kind::Pairs))
    }
}

/// A run as most are: γ stays as it is, and steps are lines.
fn run(args: TrainArgs, head: HeadKind, objective: Objective, score: Score, kind: Kind) -> Run {
    Run { args, head, objective, gamma_decay: false, score, kind, step_separator: "\n".into() }
}

fn start(run: Run) -> anyhow::Result<()> {
    threads(run.args.threads)?;
    anyhow::ensure!(run.args.lora_rank != Some(0), "--lora-rank must be at least 1");
    let workers = Workers::join()?;
    let result = run.run(&workers).map(drop);
    if let Err(error) = &result
        && workers.count() > 1
    {
        eprintln!("error: {error:#}");
        workers.abort();
    }
    result
}

/// `\n` and its like.
fn unescaped(text: &str) -> Result<String, String> {
    serde_json::from_str(&format!("\"{text}\"")).map_err(|e| e.to_string())
}
