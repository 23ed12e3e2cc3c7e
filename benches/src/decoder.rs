//! A whole checkpoint scored in process, batch after batch as the server does: no HTTP, no queue.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use qrm_kernels::Weights;
use qrm_model::forest::Forest;
use qrm_model::{Placement, PrefixCache, RewardKind, RewardModel, Trajectory};
use serde::Deserialize;

use crate::device;
use crate::machine::{peak_mib, pool, sgemm_gflops};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Checkpoint directory.
    #[arg(long)]
    model: PathBuf,
    /// JSONL of `{"prompt": [ids], "response": [ids]}`, or a JSON array of them; made-up tokens when absent. Where
    /// rows carry another implementation's `log_phi`, the largest difference from it is printed.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Tokens of a batch at most, those that trajectories share counted once, as the server's flag of this name does.
    #[arg(long, default_value_t = 2048)]
    max_batch_tokens: usize,
    /// Keys and values of prefixes kept from batch to batch, MiB, as the server does; 0 = none. Each run begins with none.
    #[arg(long, default_value_t = 512)]
    prefix_cache_mib: usize,
    /// Times the whole input is scored; each is timed.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// What weights are held in: f32, f16, bf16, int8, int8-all.
    #[arg(long, default_value = "f32")]
    dtype: Weights,
    /// Where it is computed: cpu, or cuda:0.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Writes the rewards here, a row `{"log_phi": [...]}` for each of the input.
    #[arg(long)]
    rewards: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let placement = Placement::on(device::open(&args.device, args.dtype)?);
    let start = Instant::now();
    let model = RewardModel::load_on(&args.model, &placement)?;
    println!("loaded in {:.1} s", start.elapsed().as_secs_f64());
    let loaded = peak_mib();
    let (work, expected) = match &args.input {
        Some(path) => read(path)?,
        None => ((0..16).map(|i| made_up(i, &model)).collect(), Vec::new()),
    };
    let total: usize = work.iter().map(Trajectory::len).sum();
    let batches = batches(&work, args.max_batch_tokens);
    let pool = pool(args.threads)?;
    for run in 0..=args.runs {
        let start = Instant::now();
        let mut computed = 0;
        let mut log_phi = Vec::new();
        let cache = PrefixCache::new(&model, args.prefix_cache_mib << 20)?;
        for batch in &batches {
            let batch = pool.install(|| model.score_cached(batch, &cache))?;
            computed += batch.computed_tokens.iter().sum::<usize>();
            log_phi.extend(batch.scores.iter().map(|s| s.rewards(RewardKind::Advantage)));
        }
        let seconds = start.elapsed().as_secs_f64();
        if run > 0 {
            println!(
                "{} trajectories, {total} tokens, {computed} computed: {:.1} tokens/s",
                work.len(),
                total as f64 / seconds
            );
            continue;
        }
        if let Some(path) = &args.rewards {
            let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
            for log_phi in &log_phi {
                writeln!(file, "{}", serde_json::json!({ "log_phi": log_phi }))?;
            }
            file.flush()?;
        }
        let log_phi = log_phi.concat();
        if expected.len() == log_phi.len() {
            let differences = log_phi.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
            println!("max |difference of log phi| from the input's: {:.2e}", differences.fold(0.0, f64::max));
        }
    }
    if let (Some(loaded), Some(peak)) = (loaded, peak_mib()) {
        println!(
            "peak memory: {loaded:.0} MiB loaded, {peak:.0} MiB in all; sgemm here {:.0} GFLOP/s",
            sgemm_gflops()?
        );
    }
    Ok(())
}

/// Neighbours, as many as fit.
fn batches(mut work: &[Trajectory], most: usize) -> Vec<&[Trajectory]> {
    let mut batches = Vec::new();
    while !work.is_empty() {
        let fits = |count: &usize| Forest::new(&work[..*count]).len() <= most;
        let count = (2..=work.len()).take_while(fits).last().unwrap_or(1);
        let (batch, rest) = work.split_at(count);
        batches.push(batch);
        work = rest;
    }
    batches
}

fn made_up(i: usize, model: &RewardModel) -> Trajectory {
    let ids = |n: usize, salt: usize| -> Vec<u32> {
        (0..n).map(|t| ((t * 31 + salt * 977) % model.vocab_size()) as u32).collect()
    };
    let most = model.context_length() / 3;
    Trajectory { prompt_ids: ids(80.min(most), i).into(), response_ids: ids(170.min(most), i + 100).into() }
}

/// The trajectories, and all their `log_phi` in order where every row has it.
fn read(path: &Path) -> anyhow::Result<(Vec<Trajectory>, Vec<f64>)> {
    #[derive(Deserialize)]
    struct Row {
        prompt: Vec<u32>,
        response: Vec<u32>,
        #[serde(default)]
        log_phi: Vec<f64>,
    }
    let text = std::fs::read_to_string(path)?;
    let rows: Vec<Row> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text)?,
        false => text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?,
    };
    let expected = rows.iter().flat_map(|r| r.log_phi.iter().copied()).collect();
    let work = rows
        .into_iter()
        .map(|r| Trajectory { prompt_ids: r.prompt.into(), response_ids: r.response.into() })
        .collect();
    Ok((work, expected))
}
