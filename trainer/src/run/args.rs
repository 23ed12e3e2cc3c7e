//! The flags that all training has in common.

use std::path::PathBuf;

use clap::Args;
use qrm_model::training::{Lora, Method};

use crate::export::Store;
use crate::optimizer::{Decay, Settings};

/// What all training has in common.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Checkpoint directory to start from.
    #[arg(long)]
    pub model: PathBuf,
    /// JSONL to train on.
    #[arg(long)]
    pub train: PathBuf,
    /// JSONL to evaluate on.
    #[arg(long)]
    pub eval: Option<PathBuf>,
    /// Directory for the model, saved states and metrics.
    #[arg(long)]
    pub output: PathBuf,
    /// Leaves the end-of-sequence token off the answers.
    #[arg(long)]
    pub no_append_eos: bool,
    /// Decides every random choice.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Passes over the data.
    #[arg(long, default_value_t = 1.0)]
    pub epochs: f64,
    /// Steps in all, instead of epochs.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Examples of one step; under `mpirun`, of each process.
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Tokens of one forward and backward; a step is cut into as many as it needs.
    #[arg(long, default_value_t = 4096)]
    pub micro_batch_tokens: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-5)]
    pub lr: f64,
    /// Share of the steps that warm up.
    #[arg(long, default_value_t = 0.05)]
    pub warmup: f64,
    /// The learning rate after the warm-up.
    #[arg(long, default_value = "cosine")]
    pub decay: Decay,
    /// On weights of two or more dimensions.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// AdamW's β₁.
    #[arg(long, default_value_t = 0.9)]
    pub adam_beta1: f64,
    /// AdamW's β₂.
    #[arg(long, default_value_t = 0.999)]
    pub adam_beta2: f64,
    /// The gradient's global norm is cut to this; 0 = never.
    #[arg(long, default_value_t = 1.0)]
    pub max_grad_norm: f64,
    /// Computes each layer's activations again on the way back: less memory, one more forward.
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Trains adapters of this rank instead of all weights.
    #[arg(long)]
    pub lora_rank: Option<usize>,
    /// The adapters' change is scaled by alpha / rank.
    #[arg(long, default_value_t = 16.0)]
    pub lora_alpha: f64,
    /// Projections that get an adapter.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    )]
    pub lora_targets: Vec<String>,
    /// Steps between evaluations; 0 = at start and end.
    #[arg(long, default_value_t = 0)]
    pub eval_every: usize,
    /// Steps between saved states; 0 = none.
    #[arg(long, default_value_t = 0)]
    pub save_every: usize,
    /// Saved states that are kept.
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Goes on from the newest saved state in the output directory.
    #[arg(long)]
    pub resume: bool,
    /// Gives the model of the best evaluation instead of the last.
    #[arg(long, requires = "eval")]
    pub best: bool,
    /// What the finished weights are stored as.
    #[arg(long, default_value = "f32")]
    pub store: Store,
    /// Compute threads; 0 = one per core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

impl TrainArgs {
    /// What is trained.
    pub(super) fn method(&self) -> Method {
        match self.lora_rank {
            None => Method::Full,
            Some(rank) => {
                let (alpha, targets) = (self.lora_alpha, self.lora_targets.clone());
                Method::Lora(Lora { rank, alpha, targets })
            }
        }
    }

    /// The numbers of AdamW.
    pub(super) fn optimizer(&self) -> Settings {
        Settings {
            betas: (self.adam_beta1, self.adam_beta2),
            eps: 1e-8,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
        }
    }
}
