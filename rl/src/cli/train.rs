//! `qrm-rl reinforce`, `grpo` and `ppo`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use qrm_model::RewardModel;
use qrm_model::reward::Normalize;
use qrm_trainer::optimizer::{Decay, Settings as Adam};
use qrm_trainer::task::Split;

use super::{ServerArgs, TaskArgs};
use crate::rollout::{Judge, Sampler};
use crate::run::Run;
use crate::settings::{Algorithm, Baseline, Credit, Settings};
use crate::signal::Kl;
use crate::task::Question;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RewardSource {
    /// `--reward-url`.
    Server,
    /// 1 at the end of an answer with the right number.
    Verifier,
}

#[derive(Debug, Clone, Args)]
pub(super) struct TrainArgs {
    /// The policy to start from: a checkpoint with a vocabulary head.
    #[arg(long)]
    policy: PathBuf,
    /// Directory of all that the run writes.
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    /// As `--data`, which needs it: validation questions, none of them to learn from.
    #[arg(long, requires = "data")]
    eval_data: Option<PathBuf>,
    /// What judges.
    #[arg(long, default_value = "server")]
    judge: RewardSource,
    #[command(flatten)]
    server: ServerArgs,
    /// Scaling of the rewards; of REINFORCE and PPO.
    #[arg(long, default_value = "std", value_parser = scalings())]
    normalize: Normalize,
    /// What is taken from a token's reward before that.
    #[arg(long, default_value = "none")]
    baseline: Baseline,
    /// What a token is credited with.
    #[arg(long, default_value = "auto")]
    credit: Credit,
    /// Leaves the end of sequence its own reward, where REINFORCE puts the trajectory's mean.
    #[arg(long)]
    keep_end: bool,
    /// Weight of the KL penalty; default: 0.01, and 0 for REINFORCE.
    #[arg(long)]
    kl_coef: Option<f64>,
    /// Estimate of the KL penalty. GRPO's loss has k3 whatever this is.
    #[arg(long, default_value = "absolute")]
    kl: Kl,
    /// ε of the clipped ratio.
    #[arg(long, default_value_t = 0.2)]
    clip: f64,
    /// ε of the critic's clipped loss; 0 = not clipped.
    #[arg(long, default_value_t = 0.0)]
    value_clip: f64,
    /// Weight of the policy's entropy.
    #[arg(long, default_value_t = 0.0)]
    entropy_coef: f64,
    /// γ of GAE, and of returns; default: 0.9, and 1 for REINFORCE.
    #[arg(long)]
    gamma: Option<f64>,
    /// λ of GAE.
    #[arg(long, default_value_t = 0.8)]
    lambda: f64,
    /// Standardises GAE's advantages over the step.
    #[arg(long)]
    whiten: bool,
    /// Where PPO's critic starts, a new head on its decoder; default: the policy.
    #[arg(long)]
    critic: Option<PathBuf>,
    /// c_V: the critic's weight beside rewards that are advantages.
    #[arg(long, default_value_t = 0.01)]
    critic_weight: f64,
    /// Steps.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Questions of a step.
    #[arg(long, default_value_t = 256)]
    prompts: usize,
    /// Answers to a question.
    #[arg(long, default_value_t = 4)]
    samples: usize,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Passes over a step's answers.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Updates of a pass.
    #[arg(long, default_value_t = 1)]
    minibatches: usize,
    /// Highest learning rate of the policy.
    #[arg(long, default_value_t = 3e-5)]
    lr: f64,
    /// Highest learning rate of the critic.
    #[arg(long, default_value_t = 5e-4)]
    critic_lr: f64,
    /// Steps in which the learning rates rise.
    #[arg(long, default_value_t = 0)]
    warmup: usize,
    /// The learning rates after them.
    #[arg(long, default_value = "constant")]
    decay: Decay,
    /// The gradient's global norm is cut to this.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Tokens of one forward and backward.
    #[arg(long, default_value_t = 8192)]
    micro_batch_tokens: usize,
    /// Steps between evaluations.
    #[arg(long, default_value_t = 10)]
    eval_every: usize,
    /// Sampled answers to each validation question, beside the greedy one.
    #[arg(long, default_value_t = 0)]
    eval_samples: usize,
    /// Gives the policy of the best evaluation (of sampled answers, where there are) instead of the last.
    #[arg(long)]
    best: bool,
    /// Steps between saved states; 0 = none.
    #[arg(long, default_value_t = 0)]
    save_every: usize,
    /// Go on from the newest saved state.
    #[arg(long)]
    resume: bool,
    /// Go on from it though the servers' reward model is another by now.
    #[arg(long, requires = "resume")]
    new_reward_model: bool,
    /// Validation questions, at most.
    #[arg(long, default_value_t = 400)]
    eval_questions: usize,
    /// Decides every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The values of `--normalize`: a server's, by its names, so that both scale alike.
fn scalings() -> impl TypedValueParser<Value = Normalize> {
    let all = [
        ("none", "As they come"),
        ("std", "r / σ, as the released Q-RM code has it"),
        ("standard", "(r − μ) / σ, as the paper has it"),
    ];
    PossibleValuesParser::new(all.map(|(name, help)| PossibleValue::new(name).help(help)))
        .try_map(|name| serde_json::from_value::<Normalize>(name.into()))
}

impl TrainArgs {
    pub(super) fn run(self, algorithm: Algorithm) -> anyhow::Result<()> {
        let is_grpo = algorithm == Algorithm::Grpo;
        // Of the sum of an answer, it would pay for reaching states in which the reward model is unsure.
        anyhow::ensure!(
            self.baseline == Baseline::None || !(is_grpo || self.credit == Credit::Return),
            "--baseline entropy is for tokens that are credited with their own reward, not with a sum"
        );
        anyhow::ensure!(
            !is_grpo || self.samples > 1,
            "grpo compares the answers of a group: --samples 2 at least"
        );
        anyhow::ensure!(!self.best || self.eval_questions > 0, "--best needs --eval-questions");
        let policy = RewardModel::load(&self.policy)?;
        let started = policy.version().to_owned();
        let source = self.task.source(Split::Train, &policy, self.seed)?;
        let validation = self.validation(&policy)?;
        drop(policy);
        let judge = match self.judge {
            RewardSource::Verifier => Judge::Verifier,
            RewardSource::Server => {
                let rewards = self.server.connect(&self.policy, self.baseline == Baseline::Entropy)?;
                Judge::Server(Box::new(rewards))
            }
        };
        let settings = self.settings(algorithm, started);
        let sampler = Sampler {
            // Another would sample from another policy than the one whose gradient is taken.
            temperature: 1.0,
            samples: self.samples,
            max_new_tokens: self.max_new_tokens,
        };
        let pass = Run::new(settings, self.policy, judge, source, sampler, validation)?.run()?;
        println!("{}", serde_json::json!({ "pass_at_1": pass }));
        Ok(())
    }

    /// `started` is the policy's version.
    fn settings(&self, algorithm: Algorithm, started: String) -> Settings {
        let is_reinforce = algorithm == Algorithm::Reinforce;
        Settings {
            algorithm,
            critic: self.critic.clone(),
            output: self.output.clone(),
            steps: self.steps,
            prompts: self.prompts,
            seed: self.seed,
            questions: format!("{:?}", self.task),
            validation: format!("{} of {:?}", self.eval_questions, self.eval_data),
            started,
            judge: format!("{:?}, {}, {:?}", self.judge, self.server.asked_for(), self.baseline),
            normalize: self.normalize,
            credit: self.credit,
            end_by_mean: !self.keep_end && is_reinforce,
            kl_coef: self.kl_coef.unwrap_or(if is_reinforce { 0.0 } else { 0.01 }),
            kl: self.kl,
            clip: self.clip,
            value_clip: self.value_clip,
            entropy_coef: self.entropy_coef,
            gamma: self.gamma.unwrap_or(if is_reinforce { 1.0 } else { 0.9 }),
            lambda: self.lambda,
            whiten: self.whiten,
            critic_weight: self.critic_weight,
            epochs: self.epochs,
            minibatches: self.minibatches,
            lr: (self.lr, self.critic_lr),
            warmup: self.warmup,
            decay: self.decay,
            optimizer: Adam {
                betas: (0.9, 0.95),
                eps: 1e-8,
                weight_decay: 0.0,
                max_grad_norm: self.max_grad_norm,
            },
            micro_batch_tokens: self.micro_batch_tokens,
            eval_every: self.eval_every,
            eval_samples: self.eval_samples,
            keep_best: self.best,
            save_every: self.save_every,
            resume: self.resume,
            new_reward_model: self.new_reward_model,
        }
    }

    /// The same questions for every run, whatever its seed.
    fn validation(&self, policy: &RewardModel) -> anyhow::Result<Vec<Question>> {
        if self.eval_questions == 0 {
            return Ok(Vec::new());
        }
        anyhow::ensure!(
            self.task.data.is_none() || self.eval_data.is_some(),
            "--data needs --eval-data: how many of the questions it learns from a policy can answer says little \
             (or --eval-questions 0)"
        );
        let task = TaskArgs { data: self.eval_data.clone(), ..self.task.clone() };
        let mut source = task.source(Split::Validation, policy, 0)?;
        source.take(self.eval_questions.min(source.count().unwrap_or(usize::MAX)), policy)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: TrainArgs,
    }

    /// What nobody named is what the paper and its released code have.
    #[test]
    fn defaults_are_the_papers() {
        let args = Alone::parse_from(["qrm-rl", "--policy", "p", "--output", "o"]).args;
        let of = |algorithm| args.settings(algorithm, String::new());
        for algorithm in [Algorithm::Reinforce, Algorithm::Ppo, Algorithm::Grpo] {
            let s = of(algorithm);
            assert_eq!((s.normalize, s.credit, s.kl), (Normalize::Std, Credit::Auto, Kl::Absolute));
            assert_eq!((s.clip, s.critic_weight, s.lambda), (0.2, 0.01, 0.8));
            assert_eq!((s.value_clip, s.entropy_coef, s.whiten, s.epochs), (0.0, 0.0, false, 1));
        }
        assert_eq!(args.baseline, Baseline::None);
        let [reinforce, ppo] = [of(Algorithm::Reinforce), of(Algorithm::Ppo)];
        assert_eq!((reinforce.kl_coef, reinforce.gamma, reinforce.end_by_mean), (0.0, 1.0, true));
        assert_eq!((ppo.kl_coef, ppo.gamma, ppo.end_by_mean), (0.01, 0.9, false));
    }
}
