//! Subcommands and flags.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use qrm_model::RewardModel;
use qrm_model::checkpoint::Checkpoint;
use qrm_model::reward::HeadKind;
use qrm_model::training::{Lora, Method};

use crate::credit::noise;
use crate::data::{self, Format, Kind};
use crate::evaluate::{Score, evaluate};
use crate::export::Store;
use crate::objective::{Objective, Preference};
use crate::optimizer::{Decay, Settings};
use crate::run::Run;
use crate::task::cli::TaskCommand;
use crate::workers::Workers;

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

/// What all training has in common.
#[derive(Debug, Clone, Args)]
struct TrainArgs {
    /// Checkpoint directory to start from.
    #[arg(long)]
    model: PathBuf,
    /// JSONL to train on.
    #[arg(long)]
    train: PathBuf,
    /// JSONL to evaluate on.
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Directory for the model, saved states and metrics.
    #[arg(long)]
    output: PathBuf,
    /// Leaves the end-of-sequence token off the answers.
    #[arg(long)]
    no_append_eos: bool,
    /// Decides every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Passes over the data.
    #[arg(long, default_value_t = 1.0)]
    epochs: f64,
    /// Steps in all, instead of epochs.
    #[arg(long)]
    steps: Option<usize>,
    /// Examples of one step; under `mpirun`, of each process.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Tokens of one forward and backward; a step is cut into as many as it needs.
    #[arg(long, default_value_t = 4096)]
    micro_batch_tokens: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-5)]
    lr: f64,
    /// Share of the steps that warm up.
    #[arg(long, default_value_t = 0.05)]
    warmup: f64,
    /// The learning rate after the warm-up.
    #[arg(long, default_value = "cosine")]
    decay: Decay,
    /// On weights of two or more dimensions.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// AdamW's β₁.
    #[arg(long, default_value_t = 0.9)]
    adam_beta1: f64,
    /// AdamW's β₂.
    #[arg(long, default_value_t = 0.999)]
    adam_beta2: f64,
    /// The gradient's global norm is cut to this; 0 = never.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Computes each layer's activations again on the way back: less memory, one more forward.
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Trains adapters of this rank instead of all weights.
    #[arg(long)]
    lora_rank: Option<usize>,
    /// The adapters' change is scaled by alpha / rank.
    #[arg(long, default_value_t = 16.0)]
    lora_alpha: f64,
    /// Projections that get an adapter.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    )]
    lora_targets: Vec<String>,
    /// Steps between evaluations; 0 = at start and end.
    #[arg(long, default_value_t = 0)]
    eval_every: usize,
    /// Steps between saved states; 0 = none.
    #[arg(long, default_value_t = 0)]
    save_every: usize,
    /// Saved states that are kept.
    #[arg(long, default_value_t = 2)]
    keep: usize,
    /// Goes on from the newest saved state in the output directory.
    #[arg(long)]
    resume: bool,
    /// Gives the model of the best evaluation instead of the last.
    #[arg(long, requires = "eval")]
    best: bool,
    /// What the finished weights are stored as.
    #[arg(long, default_value = "f32")]
    store: Store,
    /// Compute threads; 0 = one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Debug, Clone, Args)]
struct QrmArgs {
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
struct OrmArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// Share of pairs taken to be labelled the wrong way round.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
}

#[derive(Debug, Clone, Args)]
struct PrmArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// What ends a step when the model is served, written as within a JSON string.
    #[arg(long, default_value = "\\n", value_parser = unescaped)]
    step_separator: String,
}

#[derive(Debug, Clone, Args)]
struct DpoArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// β of the loss.
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// Share of pairs taken to be labelled the wrong way round.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
}

#[derive(Debug, Clone, Args)]
struct EvaluateArgs {
    /// Checkpoint directory.
    #[arg(long)]
    model: PathBuf,
    /// JSONL of pairs.
    #[arg(long)]
    data: PathBuf,
    /// Leaves the end-of-sequence token off the answers.
    #[arg(long)]
    no_append_eos: bool,
    /// Scales margins to log odds, for the calibration; default: the β that the checkpoint was trained with, or 0.2.
    #[arg(long)]
    beta: Option<f64>,
    /// Judges random rewards too, of this seed: a control.
    #[arg(long)]
    noise: Option<u64>,
    /// Tokens of one forward.
    #[arg(long, default_value_t = 4096)]
    micro_batch_tokens: usize,
    /// Compute threads; 0 = one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// What a subcommand adds to the common flags.
struct Aim {
    head: HeadKind,
    reward_model: Option<&'static str>,
    objective: Objective,
    gamma_decay: bool,
    score: Score,
    kind: Kind,
    step_separator: String,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        let aim = |head, reward_model, objective, score, kind| Aim {
            head,
            reward_model,
            objective,
            gamma_decay: false,
            score,
            kind,
            step_separator: "\n".into(),
        };
        match self.command {
            Command::Sft(args) => {
                args.run(aim(HeadKind::QVocab, None, Objective::Sft, Score::MeanLogit, Kind::Answers))
            }
            Command::Qrm(args) => {
                let (head, name) = match args.head {
                    QrmHead::Vocab => (HeadKind::QVocab, "q_vocab"),
                    QrmHead::Scalar => (HeadKind::QScalar, "q_scalar"),
                };
                let (beta, gamma, label_smoothing) = (args.beta, args.gamma, args.label_smoothing);
                let sft = args.sft_weight;
                let vocabulary = args.head == QrmHead::Vocab;
                anyhow::ensure!(sft == 0.0 || vocabulary, "--sft-weight is for a vocabulary head");
                let objective = Objective::Qrm(Preference { beta, gamma, label_smoothing, sft });
                let aim = aim(head, Some(name), objective, Score::MeanLogit, Kind::Pairs);
                args.train.run(Aim { gamma_decay: args.gamma_decay, ..aim })
            }
            Command::Orm(args) => {
                let label_smoothing = args.label_smoothing;
                let loss = Preference { beta: 1.0, gamma: 0.0, label_smoothing, sft: 0.0 };
                let objective = Objective::Outcome(loss);
                let aim = aim(HeadKind::Outcome, Some("outcome"), objective, Score::LastLogit, Kind::Pairs);
                args.train.run(aim)
            }
            Command::Prm(args) => {
                let score = Score::WorstStep;
                let aim = aim(HeadKind::Step, Some("step"), Objective::Step, score, Kind::Steps);
                args.train.run(Aim { step_separator: args.step_separator, ..aim })
            }
            Command::Dpo(args) => {
                let (beta, label_smoothing) = (args.beta, args.label_smoothing);
                let loss = Preference { beta, gamma: 0.0, label_smoothing, sft: 0.0 };
                let objective = Objective::Dpo(loss);
                args.train.run(aim(HeadKind::Dpo, Some("dpo"), objective, Score::LogRatio, Kind::Pairs))
            }
            Command::Task(command) => command.run(),
            Command::Evaluate(args) => args.run(),
        }
    }
}

impl TrainArgs {
    fn run(self, aim: Aim) -> anyhow::Result<()> {
        threads(self.threads)?;
        let method = match self.lora_rank {
            None => Method::Full,
            Some(rank) => {
                anyhow::ensure!(rank > 0, "--lora-rank must be at least 1");
                Method::Lora(Lora { rank, alpha: self.lora_alpha, targets: self.lora_targets })
            }
        };
        let run = Run {
            model: self.model,
            head: aim.head,
            reward_model: aim.reward_model,
            objective: aim.objective,
            gamma_decay: aim.gamma_decay,
            score: aim.score,
            method,
            kind: aim.kind,
            train: self.train,
            eval: self.eval,
            output: self.output,
            append_eos: !self.no_append_eos,
            step_separator: aim.step_separator,
            seed: self.seed,
            epochs: self.epochs,
            steps: self.steps,
            batch: self.batch,
            micro_batch_tokens: self.micro_batch_tokens,
            lr: self.lr,
            warmup: self.warmup,
            decay: self.decay,
            optimizer: Settings {
                betas: (self.adam_beta1, self.adam_beta2),
                eps: 1e-8,
                weight_decay: self.weight_decay,
                max_grad_norm: self.max_grad_norm,
            },
            checkpointing: self.gradient_checkpointing,
            eval_every: self.eval_every,
            save_every: self.save_every,
            keep: self.keep,
            resume: self.resume,
            best: self.best,
            store: self.store,
        };
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
}

impl EvaluateArgs {
    fn run(self) -> anyhow::Result<()> {
        threads(self.threads)?;
        let model = RewardModel::load(&self.model)?;
        let format = Format { kind: Kind::Pairs, append_eos: !self.no_append_eos };
        let examples = data::load(&self.data, format, &model)?;
        let score = match model.head() {
            HeadKind::Outcome => Score::LastLogit,
            HeadKind::Step => Score::WorstStep,
            HeadKind::Dpo => Score::Sum,
            HeadKind::QVocab | HeadKind::QScalar => Score::MeanLogit,
        };
        let beta = match (self.beta, model.head()) {
            (Some(beta), _) => beta,
            (None, HeadKind::Dpo) => 1.0, // its rewards have β in them
            (None, _) => Checkpoint::open(&self.model)?.qrm_config().beta.unwrap_or(0.2),
        };
        let mut evaluation = evaluate(&model, &examples, score, beta, self.micro_batch_tokens)?;
        if let Some(seed) = self.noise {
            evaluation.readings.insert("noise", noise(&examples, seed));
        }
        println!("{}", serde_json::to_string_pretty(&evaluation)?);
        Ok(())
    }
}

/// `\n` and its like.
fn unescaped(text: &str) -> Result<String, String> {
    serde_json::from_str(&format!("\"{text}\"")).map_err(|e| e.to_string())
}

fn threads(threads: usize) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting the threads")
}
