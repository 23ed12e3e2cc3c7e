//! The CUDA ops on this machine's first GPU, each beside what bounds it: multiplies by TFLOP/s, the rest by bytes.

mod attention;
mod layer;
mod token_reward;

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::ValueEnum;
use half::bf16;
use qrm_kernels::Float;
use qrm_kernels::cuda::{Gpu, Matrix};

use crate::noise::values;

/// Timed runs; the median counts.
const RUNS: usize = 9;
/// Noise that matrices repeat: a prime number of values, so that no two rows are alike.
const PERIOD: usize = 1_000_003;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// These alone.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    TokenReward,
    Layer,
    Attention,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let gpu = Gpu::open(0)?;
    println!("{}, compute capability {:?}", gpu.name()?, gpu.capability());
    let picked = |part: &&Part| args.only.is_empty() || args.only.contains(part);
    Part::value_variants().iter().filter(picked).try_for_each(|part| match part {
        Part::TokenReward => token_reward::run(&gpu),
        Part::Layer => layer::run(&gpu),
        Part::Attention => attention::run(&gpu),
    })
}

/// A bf16 matrix of noise on the host.
fn noise(rows: usize, columns: usize, scale: f32) -> candle_core::Result<Tensor> {
    let period: Vec<bf16> = values(PERIOD, scale).into_iter().map(bf16::from_f32).collect();
    let elements: Vec<bf16> = period.iter().copied().cycle().take(rows * columns).collect();
    Tensor::from_vec(elements, (rows, columns), &Device::Cpu)
}

/// The same on the GPU.
fn matrix(gpu: &Arc<Gpu>, rows: usize, columns: usize, scale: f32) -> candle_core::Result<Matrix> {
    Matrix::upload(gpu, &noise(rows, columns, scale)?, Float::BF16)
}

/// Seconds of a run, of `together` that are queued at once: what the host does is in the shadow of the others.
fn median(
    gpu: &Gpu,
    together: usize,
    mut run: impl FnMut() -> candle_core::Result<()>,
) -> anyhow::Result<f64> {
    run()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        gpu.synchronize()?;
        let start = Instant::now();
        (0..together).try_for_each(|_| run())?;
        gpu.synchronize()?;
        times.push(start.elapsed().as_secs_f64() / together as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}
