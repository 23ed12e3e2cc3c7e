//! A loaded reward model: text processing, decoder and head together.

use std::path::Path;

use candle_core::Tensor;
use qrm_kernels::Rows;

use crate::checkpoint::{Activation, Checkpoint, CheckpointError, DecoderConfig, QrmConfig};
use crate::decoder::{Decoder, EMBEDDING};
use crate::forest::Forest;
use crate::head::Head;
use crate::loader::Loader;
use crate::placement::Placement;
use crate::prefix_cache::{Continuation, PrefixCache};
use crate::reward::{HeadKind, TokenScores};
use crate::steps::Steps;
use crate::text::TextProcessor;
use crate::training::{Gradients, Method, Parameters, Pass};
use crate::trajectory::Trajectory;

/// Why a batch could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The numeric layer failed.
    #[error("the decoder failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// A trajectory that the caller should have refused.
    #[error("trajectory {index}: {message}")]
    Trajectory {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A score came out infinite or not a number.
    #[error("trajectory {index}: a score is not finite")]
    NotFinite {
        /// Its place in the batch.
        index: usize,
    },
}

impl ModelError {
    /// The same of a batch that `first` trajectories come before.
    pub(crate) fn after(self, first: usize) -> Self {
        match self {
            Self::Compute(error) => Self::Compute(error),
            Self::Trajectory { index, message } => Self::Trajectory { index: first + index, message },
            Self::NotFinite { index } => Self::NotFinite { index: first + index },
        }
    }
}

/// The scores of one batch, in the order of its trajectories.
#[derive(Debug, Clone)]
pub struct BatchScores {
    /// Per trajectory, `[T]` each.
    pub scores: Vec<TokenScores>,
    /// Per trajectory: tokens computed for it. What it shares counts for the first that has it, so the sum is the
    /// number of unique tokens the decoder ran.
    pub computed_tokens: Vec<usize>,
}

/// Multiplications of a batch's parts. A DPO policy and its reference do each twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// One token through the linear layers.
    pub per_token: usize,
    /// One query over one key, in all layers.
    pub per_pair: usize,
    /// One response token through the head.
    pub per_row: usize,
}

/// What a DPO policy is read against.
struct Reference {
    beta: f32,
    policy: Box<RewardModel>,
}

impl Reference {
    /// The one that a DPO checkpoint has beside it.
    fn of(
        dir: &Path,
        qrm: &QrmConfig,
        config: &DecoderConfig,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let beta = qrm.beta.ok_or_else(|| CheckpointError::Config {
            file: "qrm_config.json".into(),
            message: "a dpo reward needs beta".into(),
        })?;
        Self::load(&dir.join(qrm.reference_dir()?), beta, config, placement)
    }

    /// A policy of the same tokens as `config`'s.
    fn load(
        dir: &Path,
        beta: f64,
        config: &DecoderConfig,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?;
        let tokens = |c: &DecoderConfig| (c.vocab_size, c.max_position_embeddings);
        if tokens(checkpoint.config()) != tokens(config) || !checkpoint.head().is_vocabulary() {
            let message = "the reference policy has another vocabulary, context or head".into();
            return Err(CheckpointError::Config { file: "config.json".into(), message });
        }
        // One that was trained with DPO itself is a policy all the same.
        let policy = RewardModel::build(dir, checkpoint.as_head(HeadKind::QVocab), None, None, placement)?;
        Ok(Self { beta: beta as f32, policy: Box::new(policy) })
    }
}

/// β where neither the checkpoint nor the caller says one: what DPO is usually trained with.
const USUAL_BETA: f64 = 0.1;

/// A batch laid out: which rows of the forest the head reads, and for which tokens.
pub(crate) struct Plan {
    pub(crate) forest: Forest,
    pub(crate) rows: Vec<u32>,
    targets: Vec<u32>,
}

/// A reward model ready to score. `Send + Sync`; [`RewardModel::score`] spreads over the calling rayon pool.
pub struct RewardModel {
    version: String,
    config: DecoderConfig,
    kind: HeadKind,
    parameters: usize,
    text: TextProcessor,
    pub(crate) decoder: Decoder,
    pub(crate) head: Head,
    trained: Parameters,
    /// Of a step-level model.
    steps: Option<Steps>,
    /// Of a DPO policy.
    reference: Option<Reference>,
    /// Bytes of a number among keys and values.
    kv_size: usize,
}

impl RewardModel {
    /// Loads a Hugging Face checkpoint directory onto the CPU in f32.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        Self::load_on(dir, &Placement::default())
    }

    /// The same onto other devices.
    pub fn load_on(dir: &Path, placement: &Placement) -> Result<Self, CheckpointError> {
        Self::build(dir, Checkpoint::open(dir)?, None, None, placement)
    }

    /// Loads a policy to be read against another of the same tokens: a DPO reward model, whatever the checkpoint says that
    /// it is. `beta` defaults to the checkpoint's, else 0.1.
    pub fn load_against(
        dir: &Path,
        reference: &Path,
        beta: Option<f64>,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.as_head(HeadKind::Dpo);
        let beta = beta.or(checkpoint.qrm_config().beta).unwrap_or(USUAL_BETA);
        let reference = Reference::load(reference, beta, checkpoint.config(), placement)?;
        Self::build(dir, checkpoint, None, Some(reference), placement)
    }

    /// Loads a checkpoint to be trained as a reward model of `kind`. A scalar head that the checkpoint does not have
    /// is made from `seed`, as adapters are.
    pub fn load_for_training(
        dir: &Path,
        kind: HeadKind,
        method: &Method,
        seed: u64,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.as_head(kind);
        Self::build(dir, checkpoint, Some((method, seed)), None, &Placement::default())
    }

    /// A value function to train: the decoder of any checkpoint, all of it, under a scalar head that `seed` makes. A reward
    /// model's own head would speak of rewards before they are scaled.
    pub fn load_critic(dir: &Path, seed: u64) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?.as_critic();
        Self::build(dir, checkpoint, Some((&Method::Full, seed)), None, &Placement::default())
    }

    fn build(
        dir: &Path,
        mut checkpoint: Checkpoint,
        training: Option<(&Method, u64)>,
        reference: Option<Reference>,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let text = TextProcessor::load(dir)?;
        let (config, kind) = (checkpoint.config().clone(), checkpoint.head());
        let mut version = checkpoint.fingerprint()?;
        let mut loader = match training {
            None => Loader::fixed(&mut checkpoint, placement.quantized(&version)?),
            Some((method, seed)) => Loader::training(&mut checkpoint, method, seed),
        };
        if config.tie_word_embeddings && kind.is_vocabulary() && !placement.first().is(placement.last()) {
            loader.share(EMBEDDING);
        }
        loader.onto(placement.last());
        let head = Head::load(&mut loader)?;
        let tied = if config.tie_word_embeddings { head.embedding() } else { None };
        let decoder = Decoder::load(&mut loader, tied, placement)?;
        let trained = loader.finish()?;
        let parameters = checkpoint.parameters();
        let steps = (kind == HeadKind::Step).then(|| Steps {
            separator: checkpoint.qrm_config().step_separator.clone().unwrap_or_else(|| "\n".into()),
            tanh: checkpoint.qrm_config().activation == Some(Activation::Tanh),
        });
        let reference = match (reference, training) {
            (None, None) if kind == HeadKind::Dpo => {
                Some(Reference::of(dir, checkpoint.qrm_config(), &config, placement)?)
            }
            (reference, _) => reference,
        };
        if let Some(reference) = &reference {
            version = format!("{version}-{}", reference.policy.version);
        }
        checkpoint.finish()?;
        let kv_size = placement.kv_size();
        Ok(Self {
            version,
            config,
            kind,
            parameters,
            text,
            decoder,
            head,
            trained,
            steps,
            reference,
            kv_size,
        })
    }

    /// A short name for the checkpoint's content.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the head gives.
    pub fn head(&self) -> HeadKind {
        self.kind
    }

    /// V: token ids must be below it.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// Whether its output matrix is that of its embeddings.
    pub fn ties_embeddings(&self) -> bool {
        self.config.tie_word_embeddings
    }

    /// The longest P + T the model was made for.
    pub fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// The fewest prompt tokens a trajectory needs: a vocabulary head reads at the position before each response token.
    pub fn min_prompt_tokens(&self) -> usize {
        self.head.lookback()
    }

    /// End of sequence: `tokenizer_config.json`'s `eos_token`, else `config.json`'s. A tokenizer may know tokens that
    /// the weights do not have.
    pub fn eos_token_id(&self) -> Option<u32> {
        let known = |id: &u32| (*id as usize) < self.vocab_size();
        self.text.eos_token_id().filter(known).or(self.config.eos_token_ids.first().copied())
    }

    /// All tokens that end an answer when it is sampled: chat models have several.
    pub(crate) fn ends(&self) -> Vec<u32> {
        self.eos_token_id().into_iter().chain(self.config.eos_token_ids.iter().copied()).collect()
    }

    /// `config.json`'s architecture, for example `Qwen2ForCausalLM`.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }

    /// A step-level model's rewards where the last token of each step is known: `[T]`, of a trajectory's `[T]` logits. None
    /// of other models.
    pub fn step_rewards(&self, last_tokens: &[usize], logit: &[f32]) -> Option<Vec<f32>> {
        self.steps.as_ref().map(|steps| steps.at(last_tokens, logit))
    }

    /// A step-level model under training has the steps it will be served with, whatever it starts from: ended by `separator`,
    /// the scalar squashed by tanh. Nothing to other models.
    pub fn set_steps(&mut self, separator: &str) {
        if let Some(steps) = &mut self.steps {
            *steps = Steps { separator: separator.into(), tanh: true };
        }
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.text
    }

    /// What is trained; empty of a model that is only served.
    pub fn trained(&self) -> &Parameters {
        &self.trained
    }

    /// The decoder's settings.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What a batch costs.
    pub fn work(&self) -> Work {
        let c = &self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let layer = c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size;
        let head = if self.kind.is_vocabulary() { c.vocab_size } else { 1 };
        Work {
            per_token: c.num_hidden_layers * layer,
            per_pair: c.num_hidden_layers * 2 * q,
            per_row: head * c.hidden_size,
        }
    }

    /// Bytes of keys and values that a token leaves in a [`PrefixCache`].
    pub fn kv_bytes_per_token(&self) -> usize {
        let c = &self.config;
        let own = c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * self.kv_size;
        own + self.reference.as_ref().map_or(0, |reference| reference.policy.kv_bytes_per_token())
    }

    /// Bytes that are free on the GPUs it computes on; none where there is none among its devices.
    pub fn free_gpu_bytes(&self) -> candle_core::Result<Option<usize>> {
        self.decoder.free_gpu_bytes()
    }

    /// Of each layer, those of a DPO reference last: its device, and the width of a token's keys and values.
    #[cfg(feature = "cuda")]
    pub(crate) fn kv_layers(&self) -> Vec<(qrm_kernels::Device, usize)> {
        let width = 2 * self.config.num_key_value_heads * self.config.head_dim;
        let own = self.decoder.devices().map(|device| (device.clone(), width));
        own.chain(self.reference.iter().flat_map(|reference| reference.policy.kv_layers())).collect()
    }

    /// Scores a batch: lays out the forest, runs the decoder once, reads the head on response positions only.
    pub fn score(&self, batch: &[Trajectory]) -> Result<BatchScores, ModelError> {
        match self.decoder.parts() {
            1 => self.run(batch, Continuation::default()).map(|(scores, _)| scores),
            _ => self.pipelined(batch, None),
        }
    }

    /// The same, bit for bit, but what `cache` has of the prompts is not computed; it keeps what is. The cache is this
    /// model's own.
    pub fn score_cached(&self, batch: &[Trajectory], cache: &PrefixCache) -> Result<BatchScores, ModelError> {
        if self.decoder.parts() > 1 {
            return self.pipelined(batch, Some(cache));
        }
        let (scores, continued) = self.run(batch, cache.find(batch, self.head.lookback()))?;
        cache.keep(continued);
        Ok(scores)
    }

    fn run(
        &self,
        batch: &[Trajectory],
        mut continued: Continuation,
    ) -> Result<(BatchScores, Continuation), ModelError> {
        let plan = self.plan(batch, &mut continued)?;
        let hidden = match plan.forest.is_empty() {
            true => None,
            false => Some(self.decoder.forward(&plan.forest, &mut continued, &plan.rows)?),
        };
        let scores = self.read(batch, &plan, hidden, &mut continued)?;
        Ok((scores, continued))
    }

    /// What the head says of a batch's hidden states.
    pub(crate) fn read(
        &self,
        batch: &[Trajectory],
        plan: &Plan,
        hidden: Option<Rows>,
        continued: &mut Continuation,
    ) -> Result<BatchScores, ModelError> {
        let mut all = TokenScores::default();
        if let Some(hidden) = hidden {
            all = self.head.forward(&hidden, &plan.targets)?;
            all.own = self.own(&all, plan, continued, batch)?;
        }
        let mut scores = Vec::with_capacity(batch.len());
        let mut at = 0;
        for (index, trajectory) in batch.iter().enumerate() {
            let end = at + trajectory.response_ids.len();
            let part = all.slice(at..end);
            if !part.is_finite() {
                return Err(ModelError::NotFinite { index });
            }
            scores.push(part);
            at = end;
        }
        let computed_tokens = (0..batch.len()).map(|i| plan.forest.fresh(i)).collect();
        Ok(BatchScores { scores, computed_tokens })
    }

    /// The rewards that take more than a token's scores.
    fn own(
        &self,
        scores: &TokenScores,
        plan: &Plan,
        continued: &mut Continuation,
        batch: &[Trajectory],
    ) -> Result<Vec<f32>, ModelError> {
        if let Some(Reference { beta, policy }) = &self.reference {
            let hidden = policy.decoder.forward(&plan.forest, continued, &plan.rows)?;
            let other = policy.head.forward(&hidden, &plan.targets)?;
            // A clamp keeps what is not a number: only the policy's own scores are looked at later.
            let log_p = |z: &f32, l: &f32| (z - l).clamp(f32::NEG_INFINITY, 0.0);
            let ratio = |((z, l), (other_z, other_l)): ((&f32, &f32), (&f32, &f32))| {
                beta * (log_p(z, l) - log_p(other_z, other_l))
            };
            let policy = scores.logit.iter().zip(&scores.logsumexp);
            return Ok(policy.zip(other.logit.iter().zip(&other.logsumexp)).map(ratio).collect());
        }
        let Some(steps) = &self.steps else { return Ok(Vec::new()) };
        let mut own = Vec::with_capacity(plan.targets.len());
        for trajectory in batch {
            let part = own.len()..own.len() + trajectory.response_ids.len();
            own.extend(steps.rewards(&self.text, &trajectory.response_ids, &scores.logit[part]));
        }
        Ok(own)
    }

    /// Runs a batch forward, makes a loss of what the head says, and adds its gradients to `gradients`.
    ///
    /// `loss` gets the head's outputs on all response tokens in the order of the batch: `[R, 3]` of a vocabulary head
    /// (logit, logsumexp, entropy), `[R, 1]` of a scalar head, f32; it gives a scalar. With `checkpointing` a layer's activations
    /// are computed again on the way back instead of kept.
    pub fn train(
        &self,
        batch: &[Trajectory],
        checkpointing: bool,
        gradients: &mut Gradients,
        loss: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<f32, ModelError> {
        let Plan { forest, rows, targets } = self.plan(batch, &mut Continuation::default())?;
        let (pass, outputs) = Pass::run(&self.decoder, &self.head, &forest, &rows, &targets, checkpointing)?;
        let loss = loss(&outputs)?;
        let value = loss.to_scalar()?;
        pass.backward(&loss, &self.trained, gradients)?;
        Ok(value)
    }

    /// Lays a batch out behind what it continues.
    pub(crate) fn plan(
        &self,
        batch: &[Trajectory],
        continued: &mut Continuation,
    ) -> Result<Plan, ModelError> {
        for (index, trajectory) in batch.iter().enumerate() {
            self.check(trajectory).map_err(|message| ModelError::Trajectory { index, message })?;
        }
        let forest = Forest::after(&continued.prefixes, batch);
        continued.lay_out(&forest);
        let lookback = self.head.lookback();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (i, trajectory) in batch.iter().enumerate() {
            let kept = forest.kept(i);
            let (first, end) = (trajectory.prompt_ids.len() - lookback, trajectory.len() - lookback);
            rows.extend_from_slice(&forest.rows(i)[first - kept..end - kept]);
            targets.extend_from_slice(&trajectory.response_ids);
        }
        Ok(Plan { forest, rows, targets })
    }

    fn check(&self, t: &Trajectory) -> Result<(), String> {
        if t.response_ids.is_empty() {
            return Err("the response is empty".into());
        }
        if t.prompt_ids.len() < self.head.lookback() {
            return Err("a vocabulary head needs a prompt of at least one token".into());
        }
        if t.len() > self.context_length() {
            return Err(format!("{} tokens, the context holds {}", t.len(), self.context_length()));
        }
        match t.prompt_ids.iter().chain(t.response_ids.iter()).find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(format!("token id {id}, the vocabulary ends at {}", self.vocab_size())),
            None => Ok(()),
        }
    }
}
