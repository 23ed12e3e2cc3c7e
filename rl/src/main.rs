//! `qrm-rl`: see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use qrm_kernels::memory::Allocator;
use qrm_kernels::threads::keep_candle_single;
use qrm_rl::cli::Cli;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    keep_candle_single();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
