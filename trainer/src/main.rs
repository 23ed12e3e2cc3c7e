//! `qrm-trainer`: see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use qrm_kernels::memory::{Allocator, keep_pages};
use qrm_kernels::threads::keep_candle_single;
use qrm_trainer::cli::Cli;
use qrm_trainer::data::BadRows;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Exit status of data with bad rows.
const BAD_ROWS: u8 = 2;

fn main() -> ExitCode {
    keep_candle_single();
    keep_pages(None);
    let Err(error) = Cli::parse().run() else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    match error.is::<BadRows>() {
        true => ExitCode::from(BAD_ROWS),
        false => ExitCode::FAILURE,
    }
}
