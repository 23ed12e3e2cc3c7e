//! Where the time of a batch goes: each op of a layer timed alone at the model's shapes, beside the whole batch. What the
//! parts do not add up to is copying, packing and waiting.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use qrm_kernels::{Device, Gates, Layout, RopeTable, Rows, Segment, Weight, Weights};
use qrm_model::{Checkpoint, Placement, RewardModel, Trajectory};

use crate::machine::{best, cpu_seconds, pool, sgemm_gflops};
use crate::noise::matrix;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Checkpoint directory.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of a batch, in trajectories of at most 256, two thirds of each response.
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048")]
    tokens: Vec<usize>,
    /// What weights are held in: f32, f16, bf16, int8, int8-all.
    #[arg(long, default_value = "f32")]
    dtype: Weights,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Times everything is run; the shortest counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// A part of the batch's time.
struct Part {
    name: &'static str,
    seconds: f64,
    /// Of its multiplies, 0 where it has none.
    flops: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let device = Device::cpu(args.dtype);
    let model = RewardModel::load_on(&args.model, &Placement::on(device.clone()))?;
    let pool = pool(args.threads)?;
    for tokens in &args.tokens {
        pool.install(|| batch(args, &device, &model, (*tokens).max(2)))?;
    }
    Ok(())
}

fn batch(args: &Args, device: &Device, model: &RewardModel, tokens: usize) -> anyhow::Result<()> {
    let work = trajectories(tokens, model.vocab_size());
    let score = || model.score(&work).map(drop).map_err(candle_core::Error::wrap);
    let whole = best(args.runs, score)?;
    let (wall, busy) = (std::time::Instant::now(), cpu_seconds());
    (0..args.runs).try_for_each(|_| score())?;
    let threads = rayon::current_num_threads() as f64;
    let busy = busy.zip(cpu_seconds()).map(|(a, b)| (b - a) / wall.elapsed().as_secs_f64() / threads);

    let parts = parts(args, device, &work)?;
    let sgemm = sgemm_gflops()?;
    println!("\n{tokens} tokens in {} trajectories, {}: {:.2} ms", work.len(), args.dtype, 1e3 * whole);
    println!("| part | ms | share | GFLOP/s |\n|---|---|---|---|");
    let mut rest = whole;
    for part in &parts {
        rest -= part.seconds;
        let rate = match part.flops > 0.0 {
            true => format!("{:.0}", part.flops / part.seconds / 1e9),
            false => String::new(),
        };
        let share = 100.0 * part.seconds / whole;
        println!("| {} | {:.2} | {share:.1} % | {rate} |", part.name, 1e3 * part.seconds);
    }
    println!("| the rest | {:.2} | {:.1} % | |", 1e3 * rest, 100.0 * rest / whole);
    let flops: f64 = parts.iter().map(|part| part.flops).sum();
    println!(
        "all multiplies at {:.0} GFLOP/s of the batch's time; sgemm here {sgemm:.0} GFLOP/s{}",
        flops / whole / 1e9,
        busy.map_or(String::new(), |busy| format!("; cores busy {:.0} %", 100.0 * busy)),
    );
    Ok(())
}

fn trajectories(tokens: usize, vocab: usize) -> Vec<Trajectory> {
    let count = tokens.div_ceil(256);
    let one = |i: usize| {
        let len = tokens * (i + 1) / count - tokens * i / count;
        let ids: Vec<u32> = (0..len).map(|t| ((t * 31 + i * 977 + 7) % vocab) as u32).collect();
        let (prompt, response) = ids.split_at((len / 3).max(1));
        Trajectory { prompt_ids: prompt.into(), response_ids: response.into() }
    };
    (0..count).map(one).collect()
}

/// The ops of all layers and of the head, at the checkpoint's shapes and with weights of noise.
fn parts(args: &Args, device: &Device, work: &[Trajectory]) -> anyhow::Result<Vec<Part>> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let c = checkpoint.config();
    let n: usize = work.iter().map(Trajectory::len).sum();
    let responses: Vec<u32> = work.iter().flat_map(|t| t.response_ids.iter().copied()).collect();
    let (d, m, layers) = (c.hidden_size, c.intermediate_size, c.num_hidden_layers as f64);
    let heads = (c.num_attention_heads, c.num_key_value_heads);
    let q = heads.0 * c.head_dim;
    let qkv_width = q + 2 * heads.1 * c.head_dim;

    let mut segments = Vec::new();
    for t in work {
        let start = segments.last().map_or(0, |s: &Segment| s.start + s.len);
        segments.push(Segment { start, len: t.len(), parent: None, position: 0 });
    }
    let longest = segments.iter().map(|s| s.len).max().context("no trajectory")?;
    let rope = RopeTable::new(&vec![0.1; c.head_dim / 2], longest);
    let positions: Vec<u32> = segments.iter().flat_map(|s| 0..s.len as u32).collect();
    let layout = Layout::new(positions.into(), segments.into(), Arc::new(rope), Arc::from([]));
    let pairs: usize = layout.segments.iter().map(|s| s.len * (s.len + 1) / 2).sum();

    let rows = |width: usize| matrix(n, width, 1.0).map(Rows::from);
    let (x, qkv, attended, gated) = (rows(d)?, rows(qkv_width)?, rows(q)?, rows(m)?);
    let weight = |out: usize, k: usize| device.projection(&[&matrix(out, k, 0.05)?], None);
    let (w_qkv, w_o, w_down) = (weight(qkv_width, d)?, weight(d, q)?, weight(d, m)?);
    let w_up = Gates::pack(&matrix(m, d, 0.05)?, &matrix(m, d, 0.05)?, args.dtype.layers())?;
    let norm =
        device.norm(candle_core::Tensor::ones(d, candle_core::DType::F32, &candle_core::Device::Cpu)?)?;
    let hidden = matrix(responses.len(), d, 1.0).map(Rows::from)?;
    let head = device.weight(&matrix(c.vocab_size, d, 0.05)?)?;

    let mut parts = Vec::new();
    let mut time = |name, times: f64, flops: usize, op: &dyn Fn() -> candle_core::Result<()>| {
        let seconds = times * best(args.runs, op)?;
        parts.push(Part { name, seconds, flops: times * flops as f64 });
        anyhow::Ok(())
    };
    let linear = |x: &Rows, w: &Weight, residual: Option<&Rows>| x.linear(w, None, residual).map(drop);
    time("norms", 2.0 * layers, 0, &|| x.rms_norm(&norm, 1e-6).map(drop))?;
    time("qkv", layers, 2 * n * d * qkv_width, &|| linear(&x, &w_qkv, None))?;
    let turned = |qkv: &Rows| Rows::from(qkv.tensor()?.clone()).qk_rope(&layout, heads, None).map(drop);
    time("rope", layers, 0, &|| turned(&qkv))?;
    let attend = || qkv.forest_attention(&layout, heads, None).map(drop);
    time("attention", layers, 4 * pairs * q, &attend)?;
    time("o and residual", layers, 2 * n * q * d, &|| linear(&attended, &w_o, Some(&x)))?;
    time("gate and up", layers, 4 * n * d * m, &|| x.gated(&w_up).map(drop))?;
    time("down and residual", layers, 2 * n * m * d, &|| linear(&gated, &w_down, Some(&x)))?;
    if checkpoint.head().is_vocabulary() {
        let flops = 2 * responses.len() * d * c.vocab_size;
        time("head and reward", 1.0, flops, &|| hidden.token_reward(&head, &responses).map(drop))?;
    }
    Ok(parts)
}
