//! The fused reward op at one shape: rate, and memory above its operands.

use qrm_kernels::{Panels, token_reward};

use crate::machine::{best, peak_mib, pool, sgemm_gflops};
use crate::noise::matrix;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rows: response tokens.
    #[arg(long, default_value_t = 8192)]
    n: usize,
    /// Hidden size.
    #[arg(long, default_value_t = 576)]
    d: usize,
    /// Vocabulary.
    #[arg(long, default_value_t = 49152)]
    v: usize,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let hidden = matrix(args.n, args.d, 1.0)?;
    let weight = Panels::pack(&matrix(args.v, args.d, 0.1)?)?;
    let targets: Vec<u32> = (0..args.n).map(|i| (i * 7919 % args.v) as u32).collect();
    let before = peak_mib();
    let seconds =
        pool(args.threads)?.install(|| best(3, || token_reward(&hidden, &weight, &targets).map(drop)))?;
    let after = peak_mib();
    let gflops = 2.0 * (args.n * args.d * args.v) as f64 / seconds / 1e9;
    println!(
        "token_reward N={} d={} V={}: {:.0} tokens/s, {gflops:.0} GFLOP/s (sgemm here {:.0})",
        args.n,
        args.d,
        args.v,
        args.n as f64 / seconds,
        sgemm_gflops()?
    );
    if let (Some(before), Some(after)) = (before, after) {
        let full = (args.n * args.v * 4) as f64 / (1 << 20) as f64;
        println!(
            "peak memory: {before:.1} MiB before, {after:.1} MiB after (a full logit matrix: {full:.0} MiB)"
        );
    }
    Ok(())
}
