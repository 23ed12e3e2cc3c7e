//! `qrm-server plan`: how many servers an RL job needs, from what this machine does with this checkpoint.
//!
//! Answers shaped like the job's are scored by a real engine (`measure`), and the rest is arithmetic. A rollout of
//! `prompts · samples` trajectories has `prompts · (P + samples · T)` tokens to compute, since a group's prompt is computed
//! once.

mod measure;

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::config::EngineArgs;
use measure::measure;

/// Servers that are busier than this make a rollout wait whenever it comes a little early.
const BUSY: f64 = 0.7;
/// What a token's request and answer hold while it is scored, as text and as numbers, bytes; 50 to 150 were measured.
const BODY_BYTES: usize = 150;

#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Checkpoint directory or hub id; default: the built-in one.
    #[arg(long, env = "QRM_MODEL")]
    model: Option<String>,
    #[command(flatten)]
    job: Job,
    /// Tokens a second that one server computes, where that is known: nothing is measured then.
    #[arg(long, value_parser = positive)]
    tokens_per_second: Option<f64>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What the policy's training asks for.
#[derive(Debug, Clone, Copy, Args, Serialize)]
struct Job {
    /// Prompts of a step.
    #[arg(long, default_value_t = 512, value_parser = at_least_one)]
    prompts: usize,
    /// Answers to each.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    samples: usize,
    /// Tokens of a prompt, on average.
    #[arg(long, default_value_t = 512, value_parser = at_least_one)]
    prompt_tokens: usize,
    /// Tokens of an answer, on average.
    #[arg(long, default_value_t = 1024, value_parser = at_least_one)]
    response_tokens: usize,
    /// Steps an hour.
    #[arg(long, default_value_t = 30.0, value_parser = positive)]
    steps_per_hour: f64,
    /// Share of a step's time that scoring may take, where the policy waits for it.
    #[arg(long, default_value_t = 0.15, value_parser = positive)]
    share: f64,
}

/// What this machine does.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Machine {
    model: String,
    parameters: usize,
    threads: usize,
    /// Trajectories that were scored to know.
    trajectories: usize,
    /// Most that the process held while it loaded the checkpoint and scored, without the prefix cache, bytes.
    peak_bytes: usize,
    /// Most that the prefix cache will hold, bytes.
    prefix_cache_bytes: usize,
}

/// What `plan` says.
#[derive(Debug, Clone, Serialize)]
struct Plan {
    job: Job,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    /// Tokens that the decoder runs in a second on one server.
    tokens_per_second: f64,
    /// Trajectories of a step.
    trajectories: usize,
    /// Tokens that the decoder runs for them.
    tokens: usize,
    /// Seconds in which one server scores them.
    rollout_seconds: f64,
    /// Servers with which scoring takes the share of a step that it may.
    replicas_waited_for: usize,
    /// Servers with which scoring ends before the next rollout comes, where sampling goes on meanwhile.
    replicas_overlapped: usize,
    /// Memory to ask for, bytes a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<usize>,
}

/// Measures, or takes the rate that is given, and prints the plan.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let (rate, machine) = match args.tokens_per_second {
        Some(rate) => (rate, None),
        None => measure(args).map(|(rate, machine)| (rate, Some(machine)))?,
    };
    let plan = Plan::new(args.job, rate, machine);
    match args.json {
        true => println!("{}", serde_json::to_string(&plan)?),
        false => print!("{plan}"),
    }
    Ok(ExitCode::SUCCESS)
}

impl Job {
    fn trajectories(&self) -> usize {
        self.prompts.saturating_mul(self.samples)
    }

    /// To be computed.
    fn tokens(&self) -> usize {
        let answers = self.samples.saturating_mul(self.response_tokens);
        self.prompts.saturating_mul(self.prompt_tokens.saturating_add(answers))
    }

    fn step_seconds(&self) -> f64 {
        3600.0 / self.steps_per_hour
    }
}

impl Plan {
    fn new(job: Job, tokens_per_second: f64, machine: Option<Machine>) -> Self {
        let tokens = job.tokens();
        let rollout_seconds = tokens as f64 / tokens_per_second;
        let replicas = |share: f64| (rollout_seconds / (share * job.step_seconds())).ceil().max(1.0) as usize;
        let (replicas_waited_for, replicas_overlapped) = (replicas(job.share), replicas(BUSY));
        // A rollout is at one server or spread over several; each must be able to hold what it may be sent.
        let memory_bytes = machine.as_ref().map(|m| {
            let whole = job.prompt_tokens.saturating_add(job.response_tokens);
            let bodies = job.trajectories().saturating_mul(whole).saturating_mul(BODY_BYTES);
            (bodies / replicas_overlapped).saturating_add(m.peak_bytes + m.prefix_cache_bytes)
        });
        Self {
            job,
            machine,
            tokens_per_second,
            trajectories: job.trajectories(),
            tokens,
            rollout_seconds,
            replicas_waited_for,
            replicas_overlapped,
            memory_bytes,
        }
    }
}

fn mib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, .. } = self;
        writeln!(
            f,
            "job        {} prompts × {} answers, {} + {} tokens: {} trajectories, {} tokens to compute; a step takes {:.0} s",
            job.prompts,
            job.samples,
            job.prompt_tokens,
            job.response_tokens,
            self.trajectories,
            self.tokens,
            job.step_seconds()
        )?;
        if let Some(m) = &self.machine {
            writeln!(
                f,
                "measured   {}, {} parameters, {} threads: {:.0} tokens/s over {} trajectories",
                m.model, m.parameters, m.threads, self.tokens_per_second, m.trajectories
            )?;
        }
        writeln!(f, "one server scores a rollout in {:.1} s", self.rollout_seconds)?;
        writeln!(
            f,
            "replicas   {} where sampling goes on meanwhile (each busy {:.0} % of the time at most)",
            self.replicas_overlapped,
            100.0 * BUSY
        )?;
        writeln!(
            f,
            "           {} where the policy waits, for at most {:.0} % of a step",
            self.replicas_waited_for,
            100.0 * job.share
        )?;
        if let (Some(m), Some(bytes)) = (&self.machine, self.memory_bytes) {
            writeln!(
                f,
                "memory     {} MiB a server: {} for weights and batches, {} of cached prompts, the rest bodies and answers",
                mib(bytes),
                mib(m.peak_bytes),
                mib(m.prefix_cache_bytes)
            )?;
        }
        Ok(())
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a number from 1 on".into())
}

/// For flags that are divided by.
fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x > 0.0 && x.is_finite()).ok_or_else(|| "a number above 0".into())
}

#[cfg(test)]
mod tests {
    use super::{Job, Machine, Plan};

    #[test]
    fn replicas_follow_from_the_rate() {
        let job = Job {
            prompts: 100,
            samples: 4,
            prompt_tokens: 200,
            response_tokens: 450,
            steps_per_hour: 36.0,
            share: 0.15,
        };
        // 100 · (200 + 4 · 450) tokens in a step of 100 s.
        let plan = Plan::new(job, 1000.0, None);
        assert_eq!((plan.trajectories, plan.tokens, plan.rollout_seconds), (400, 200_000, 200.0));
        // 200 s in 70 s, and in 15 s.
        assert_eq!((plan.replicas_overlapped, plan.replicas_waited_for), (3, 14));
        assert_eq!(Plan::new(job, 1e9, None).replicas_waited_for, 1);
        // No number is too large to be answered.
        let machine = Machine {
            model: String::new(),
            parameters: 1,
            threads: 1,
            trajectories: 1,
            peak_bytes: 1 << 30,
            prefix_cache_bytes: 1 << 30,
        };
        let endless = Job { prompts: usize::MAX, ..job };
        assert_eq!(Plan::new(endless, f64::MAX, Some(machine)).memory_bytes, Some(usize::MAX));
    }
}
