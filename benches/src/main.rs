//! Measurements of the product's own parts. Each prints its rate, and GFLOP/s beside the machine's own multiply rate.
//!
//! `cargo run --release -p qrm-benches -- token-reward|attention|decoder|profile|load|fronts …`, and with `--features cuda` `cuda`
#![forbid(unsafe_code)]

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod device;
mod fronts;
mod load;
mod machine;
mod noise;
mod profile;
mod token_reward;

use clap::{Parser, Subcommand};
use qrm_kernels::memory::{Allocator, PAUSE, keep_pages};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// The fused reward op at one shape.
    TokenReward(token_reward::Args),
    /// Forest attention: G responses below one prompt.
    Attention(attention::Args),
    /// A whole checkpoint, scored in process.
    Decoder(decoder::Args),
    /// Where the time of a batch goes.
    Profile(profile::Args),
    /// A running server under load.
    Load(load::Args),
    /// A running server's fronts side by side: JSON, base64, gRPC.
    Fronts(fronts::Args),
    /// The CUDA ops on the first GPU.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Args),
}

fn main() -> anyhow::Result<()> {
    qrm_kernels::threads::keep_candle_single();
    keep_pages(Some(PAUSE));
    match Args::parse().bench {
        Bench::TokenReward(args) => token_reward::run(&args),
        Bench::Attention(args) => attention::run(&args),
        Bench::Decoder(args) => decoder::run(&args),
        Bench::Profile(args) => profile::run(&args),
        Bench::Load(args) => load::run(&args),
        Bench::Fronts(args) => fronts::run(&args),
        #[cfg(feature = "cuda")]
        Bench::Cuda(args) => cuda::run(&args),
    }
}
