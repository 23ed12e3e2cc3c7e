//! Forest attention: G responses below one prompt.

use std::sync::Arc;

use qrm_kernels::{Segment, forest_attention};

use crate::machine::{best, pool, sgemm_gflops};
use crate::noise::matrix;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prompt tokens.
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Tokens of each response.
    #[arg(long, default_value_t = 224)]
    response: usize,
    /// Responses.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Query heads.
    #[arg(long, default_value_t = 9)]
    q_heads: usize,
    /// Key/value heads.
    #[arg(long, default_value_t = 3)]
    kv_heads: usize,
    /// Width of a head.
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut segments = vec![Segment { start: 0, len: args.prompt, parent: None, position: 0 }];
    for g in 0..args.group {
        let start = args.prompt + g * args.response;
        segments.push(Segment { start, len: args.response, parent: Some(0), position: args.prompt });
    }
    let segments: Arc<[Segment]> = segments.into();
    let n = args.prompt + args.group * args.response;
    let qkv = matrix(n, (args.q_heads + 2 * args.kv_heads) * args.head_dim, 1.0)?;
    let run = || forest_attention(&qkv, &segments, args.q_heads, args.kv_heads, None).map(drop);
    let seconds = pool(args.threads)?.install(|| best(5, run))?;
    let pairs: usize = segments.iter().map(|s| s.len * (2 * s.position + s.len + 1) / 2).sum();
    let gflops = 4.0 * (pairs * args.q_heads * args.head_dim) as f64 / seconds / 1e9;
    println!(
        "attention {n} tokens in {} segments: {:.0} tokens/s, {gflops:.0} GFLOP/s of causal pairs (sgemm here {:.0})",
        segments.len(),
        n as f64 / seconds,
        sgemm_gflops()?
    );
    Ok(())
}
