//! Subcommands and flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use qrm_model::RewardModel;
use qrm_trainer::optimizer::Settings as Adam;
use qrm_trainer::task::Split;

use crate::evaluate::{pass_at_1, pass_at_n};
use crate::rewards::Rewards;
use crate::rollout::{Judge, Sampler};
use crate::run::{Algorithm, Credit, Run, Settings};
use crate::signal::{Kl, Normalize};
use crate::task::{Question, Source};

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
    Reinforce(TrainArgs),
    /// GRPO: every answer against its group.
    Grpo(TrainArgs),
    /// PPO: with a critic and a clipped ratio.
    Ppo(TrainArgs),
    /// Pass@1 of greedy answers and Pass@N of sampled ones.
    Evaluate(EvaluateArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RewardSource {
    /// `--reward-url`.
    Server,
    /// 1 at the end of an answer with the right number.
    Verifier,
}

/// Where questions come from.
#[derive(Debug, Clone, Args)]
struct TaskArgs {
    /// JSONL of `{"prompt", "answer"}`, the answer's number after `####`; default: the arithmetic task.
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
            None => Ok(Source::arithmetic(split, self.fewest_events..=self.most_events, seed)),
        }
    }
}

#[derive(Debug, Clone, Args)]
struct TrainArgs {
    /// The policy to start from: a checkpoint with a vocabulary head.
    #[arg(long)]
    policy: PathBuf,
    /// Directory of all that the run writes.
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    /// What judges.
    #[arg(long, default_value = "server")]
    judge: RewardSource,
    /// Running servers; several take turns.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:8080")]
    reward_url: Vec<String>,
    /// Reward to ask for; default: what the server's model was trained for.
    #[arg(long)]
    reward: Option<String>,
    /// Key of the servers.
    #[arg(long, env = "QRM_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Seconds to wait for servers that do not answer.
    #[arg(long, default_value_t = 600)]
    patience: u64,
    /// Scaling of the rewards; of REINFORCE and PPO.
    #[arg(long, default_value = "std")]
    normalize: Normalize,
    /// What a token is credited with.
    #[arg(long, default_value = "auto")]
    credit: Credit,
    /// Leaves the end of sequence its own reward, where others put the trajectory's mean.
    #[arg(long)]
    keep_end: bool,
    /// Weight of the KL penalty; 0 = none.
    #[arg(long, default_value_t = 0.01)]
    kl_coef: f64,
    /// Estimate of the KL penalty.
    #[arg(long, default_value = "k1")]
    kl: Kl,
    /// ε.
    #[arg(long, default_value_t = 0.2)]
    clip: f64,
    /// γ of returns and GAE.
    #[arg(long, default_value_t = 1.0)]
    gamma: f64,
    /// λ of GAE.
    #[arg(long, default_value_t = 0.95)]
    lambda: f64,
    /// Where PPO's critic starts; default: the policy.
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
    /// Of sampling.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Passes over a step's answers.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Updates of a pass.
    #[arg(long, default_value_t = 1)]
    minibatches: usize,
    /// Learning rate of the policy.
    #[arg(long, default_value_t = 3e-5)]
    lr: f64,
    /// Learning rate of the critic.
    #[arg(long, default_value_t = 5e-4)]
    critic_lr: f64,
    /// The gradient's global norm is cut to this.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Tokens of one forward and backward.
    #[arg(long, default_value_t = 8192)]
    micro_batch_tokens: usize,
    /// Steps between evaluations.
    #[arg(long, default_value_t = 10)]
    eval_every: usize,
    /// Steps between saved states; 0 = none.
    #[arg(long, default_value_t = 0)]
    save_every: usize,
    /// Go on from the newest saved state.
    #[arg(long)]
    resume: bool,
    /// Validation questions.
    #[arg(long, default_value_t = 400)]
    eval_questions: usize,
    /// Decides every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Args)]
struct EvaluateArgs {
    /// Checkpoint with a vocabulary head.
    #[arg(long)]
    policy: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    /// Where the arithmetic task's questions are from.
    #[arg(long, default_value = "test")]
    split: Split,
    /// Questions.
    #[arg(long, default_value_t = 1000)]
    questions: usize,
    /// Sampled answers to each; 0 = greedy only.
    #[arg(long, default_value_t = 0)]
    samples: usize,
    /// Of sampling.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Decides questions and answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Reinforce(args) => args.run(Algorithm::Reinforce),
            Command::Grpo(args) => args.run(Algorithm::Grpo),
            Command::Ppo(args) => args.run(Algorithm::Ppo),
            Command::Evaluate(args) => args.run(),
        }
    }
}

impl TrainArgs {
    fn run(self, algorithm: Algorithm) -> anyhow::Result<()> {
        let policy = RewardModel::load(&self.policy)?;
        let source = self.task.source(Split::Train, &policy, self.seed)?;
        let validation = self.validation(&policy)?;
        drop(policy);
        let judge = match self.judge {
            RewardSource::Verifier => Judge::Verifier,
            RewardSource::Server => {
                let urls = self.reward_url.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
                let patience = Duration::from_secs(self.patience);
                Judge::Server(Rewards::new(urls, self.key.clone(), self.reward.clone(), patience))
            }
        };
        let settings = Settings {
            algorithm,
            critic: self.critic,
            output: self.output,
            steps: self.steps,
            prompts: self.prompts,
            seed: self.seed,
            normalize: self.normalize,
            credit: self.credit,
            end_by_mean: !self.keep_end && algorithm == Algorithm::Reinforce,
            kl_coef: self.kl_coef,
            kl: self.kl,
            clip: self.clip,
            gamma: self.gamma,
            lambda: self.lambda,
            critic_weight: self.critic_weight,
            epochs: self.epochs,
            minibatches: self.minibatches,
            lr: (self.lr, self.critic_lr),
            optimizer: Adam {
                betas: (0.9, 0.95),
                eps: 1e-8,
                weight_decay: 0.0,
                max_grad_norm: self.max_grad_norm,
            },
            micro_batch_tokens: self.micro_batch_tokens,
            eval_every: self.eval_every,
            save_every: self.save_every,
            resume: self.resume,
        };
        let sampler = Sampler {
            temperature: self.temperature,
            samples: self.samples,
            max_new_tokens: self.max_new_tokens,
        };
        let pass = Run::new(settings, self.policy, judge, source, sampler, validation)?.run()?;
        println!("{}", serde_json::json!({ "pass_at_1": pass }));
        Ok(())
    }

    /// The same questions for every run, whatever its seed.
    fn validation(&self, policy: &RewardModel) -> anyhow::Result<Vec<Question>> {
        self.task.source(Split::Validation, policy, 0)?.take(self.eval_questions, policy)
    }
}

impl EvaluateArgs {
    fn run(self) -> anyhow::Result<()> {
        let policy = RewardModel::load(&self.policy)?;
        let questions = self.task.source(self.split, &policy, self.seed)?.take(self.questions, &policy)?;
        let greedy = pass_at_1(&policy, &questions, self.max_new_tokens)?;
        let mut out = serde_json::json!({"questions": questions.len(), "greedy_pass_at_1": greedy});
        if self.samples > 0 {
            let ks: Vec<usize> = (0..).map(|i| 1 << i).take_while(|k| *k <= self.samples).collect();
            let sampler = Sampler {
                temperature: self.temperature,
                samples: self.samples,
                max_new_tokens: self.max_new_tokens,
            };
            let passes = pass_at_n(&policy, &questions, sampler, &ks, self.seed)?;
            for (k, pass) in ks.iter().zip(passes) {
                out[format!("pass_at_{k}")] = pass.into();
            }
        }
        println!("{out}");
        Ok(())
    }
}
