//! `qrm-server`: one reward per response token, over HTTP, gRPC or from a file.
//!
//! # Layout
//!
//! - [`config`]: the flags of `serve` and of every engine, and their environment twins; other flags are with their commands.
//! - [`device`]: the devices that they name.
//! - [`engine`]: the bounded queue, batches by token budget, the worker that owns the device.
//! - [`request`]: from the wire's request to trajectories and back to its answer; every front goes through it.
//! - [`api`]: the HTTP and gRPC fronts. [`connections`]: what they are spoken over. [`tls`]: how they are encrypted.
//! - [`keys`]: who may ask.
//! - [`models`]: the models that are served, by name, and their reload. [`model`]: one checkpoint; a small one is built in.
//! - [`serve`]: the process: load, listen, drain on SIGTERM.
//! - [`score`]: the same engine offline, JSONL to JSONL.
//! - [`plan`]: how many servers a job needs. [`health`], [`shell`]: for images without a shell, and for shells.
//! - [`metrics`], [`telemetry`]: Prometheus, logs and traces.
#![forbid(unsafe_code)]

mod api;
mod config;
mod connections;
mod device;
mod engine;
mod health;
mod keys;
mod metrics;
mod model;
mod models;
mod plan;
mod request;
mod score;
mod serve;
mod shell;
mod telemetry;
mod tls;

use std::process::ExitCode;

use qrm_kernels::memory::{Allocator, PAUSE, keep_pages};
use qrm_kernels::threads::keep_candle_single;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    keep_candle_single();
    keep_pages(Some(PAUSE));
    let cli = config::Cli::read();
    let (format, traces) = cli.telemetry();
    let _export = match telemetry::init(format, traces) {
        Ok(export) => export,
        Err(error) => {
            eprintln!("error: traces: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        config::Command::Serve(args) => serve::run(*args),
        config::Command::Score(args) => score::run(args),
        config::Command::Plan(args) => plan::run(&args),
        config::Command::Health(args) => health::run(&args),
        config::Command::Completions(args) => Ok(shell::completions(&args)),
        config::Command::Man => shell::man(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
