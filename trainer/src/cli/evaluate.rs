//! `qrm-trainer evaluate`.

use std::path::PathBuf;

use clap::Args;
use qrm_model::checkpoint::Checkpoint;
use qrm_model::reward::HeadKind;
use qrm_model::{RewardKind, RewardModel};

use super::threads;
use crate::credit::noise;
use crate::data::{self, Format, Kind};
use crate::evaluate::{Score, evaluate};

#[derive(Debug, Clone, Args)]
pub(super) struct EvaluateArgs {
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

impl EvaluateArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        threads(self.threads)?;
        let model = RewardModel::load(&self.model)?;
        let format = Format { kind: Kind::Pairs, append_eos: !self.no_append_eos };
        let examples = data::load(&self.data, format, &model)?;
        let score = Score::Served(match model.head() {
            HeadKind::Outcome => RewardKind::Outcome,
            HeadKind::Step => RewardKind::Step,
            HeadKind::Dpo => RewardKind::Dpo,
            HeadKind::QVocab | HeadKind::QScalar => RewardKind::Logit,
        });
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
