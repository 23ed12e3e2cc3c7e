//! What this machine does with this checkpoint: answers shaped like the job's, scored by a real engine.

use std::time::{Duration, Instant};

use qrm_model::Trajectory;

use super::{Job, Machine, PlanArgs};
use crate::engine::{self, Engine, Terms};
use crate::metrics::Metrics;
use crate::model;

/// A measurement that took this long is good enough.
const ENOUGH: Duration = Duration::from_secs(4);

/// Tokens a second, and what they were measured on.
pub(super) fn measure(args: &PlanArgs) -> anyhow::Result<(f64, Machine)> {
    let (copies, job) = (model::load(args.model.as_deref(), None, &args.engine.devices()?)?, args.job);
    let model = copies.first.model.clone();
    let length = job.prompt_tokens.saturating_add(job.response_tokens);
    anyhow::ensure!(
        length <= model.context_length(),
        "trajectories of {length} tokens do not fit the model's context of {}",
        model.context_length()
    );
    let metrics = Metrics::new()?;
    let limits = args.engine.limits(usize::MAX, usize::MAX);
    let engine = Engine::start(&copies, limits, metrics.clone())?;
    let (mut seed, mut samples, mut groups) = (0, 1, 1);
    // More and more of a rollout, until it takes long enough; what was scored before is not met again.
    let (rate, trajectories) = loop {
        let batch = rollout(&job, groups, samples, model.vocab_size(), &mut seed);
        let (trajectories, start) = (batch.len(), Instant::now());
        let terms = Terms { client: "".into(), priority: 0, deadline: None };
        let output = engine.submit(batch, terms)?.blocking_answer()?;
        let took = start.elapsed();
        if took > ENOUGH || (groups, samples) == (job.prompts, job.samples) {
            break (output.computed_tokens as f64 / took.as_secs_f64().max(1e-9), trajectories);
        }
        match samples < job.samples {
            true => samples = (samples * 2).min(job.samples),
            false => groups = (groups * 2).min(job.prompts),
        }
    };
    let cached = usize::try_from(metrics.prefix_cache_bytes.get()).unwrap_or(0);
    let prompts = job.prompts.saturating_mul(job.prompt_tokens).saturating_mul(model.kv_bytes_per_token());
    let machine = Machine {
        model: model::name(args.model.as_deref()),
        parameters: model.parameters(),
        threads: engine.threads(),
        trajectories,
        peak_bytes: peak_memory().saturating_sub(cached),
        prefix_cache_bytes: prompts.min(engine::cache_bytes(&model, limits.prefix_cache_bytes)?),
    };
    Ok((rate, machine))
}

/// Groups of answers to prompts that begin differently, of tokens that mean nothing.
fn rollout(job: &Job, groups: usize, samples: usize, vocab: usize, seed: &mut u64) -> Vec<Trajectory> {
    let mut ids = |count: usize| -> Vec<u32> {
        let mut id = || {
            // splitmix64
            *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % vocab.max(1) as u64) as u32
        };
        (0..count).map(|_| id()).collect()
    };
    let mut batch = Vec::with_capacity(groups * samples);
    for _ in 0..groups {
        let prompt = ids(job.prompt_tokens);
        for _ in 0..samples {
            let (prompt_ids, response_ids) = (prompt.clone().into(), ids(job.response_tokens).into());
            batch.push(Trajectory { prompt_ids, response_ids });
        }
    }
    batch
}

/// Most memory that this process has held, bytes; 0 where the kernel does not say.
fn peak_memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) << 10
}
