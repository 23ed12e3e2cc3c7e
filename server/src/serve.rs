//! The serving process: load, listen, reload on SIGHUP, and on SIGTERM answer what was accepted.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::auth::Keys;
use crate::api::intake::Intake;
use crate::api::{App, router};
use crate::config::ServeArgs;
use crate::connections::{self, Patience};
use crate::engine::Limits;
use crate::metrics::Metrics;
use crate::models::{Models, Served};

/// Threads for what takes long: requests being read and answers written, and a reload beside them.
const BLOCKING_THREADS: usize = 32;

/// Serves until SIGTERM or SIGINT. Success means that all accepted work was answered.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let keys = Keys::load(args.api_key_file.as_deref(), args.admin_key.as_deref())?;
    let metrics = Metrics::new()?;
    let limits = Limits {
        max_batch_tokens: args.engine.max_batch_tokens,
        max_queue_tokens: args.max_queue_tokens,
        max_queue_requests: args.max_queue_requests,
        prefix_cache_bytes: args.engine.prefix_cache_mib << 20,
        workers: args.engine.workers,
        threads: args.engine.threads,
    };
    let intake = Intake::new(
        args.max_request_bytes,
        args.max_body_bytes,
        args.stall_timeout,
        metrics.request_bytes.clone(),
    );
    let app = Arc::new(App {
        models: Models::load(&args.models()?, limits, &metrics)?,
        metrics,
        keys,
        limits,
        max_inputs: args.max_inputs,
        intake: Arc::new(intake),
        overload_status: StatusCode::from_u16(args.overload_status)?,
        default_timeout: (args.default_timeout_ms > 0)
            .then(|| Duration::from_millis(args.default_timeout_ms)),
    });
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => tracing::debug!(files, "descriptors"),
        Err(error) => tracing::warn!("the limit of open files stays as it is: {error}"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    runtime.block_on(listen(app, &args))
}

async fn listen(app: Arc<App>, args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind((args.host.as_str(), args.port)).await;
    let listener = listener.with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let patience = Patience { idle: args.idle_timeout, write: args.stall_timeout };
    let server = tokio::spawn(connections::serve(listener, router(app.clone()), patience, async {
        let _ = stopped.await;
    }));

    let warming = app.clone();
    tokio::task::spawn_blocking(move || warming.models.warm()).await??;
    let names: Vec<&str> = app.models.iter().map(|served| &*served.name).collect();
    tracing::info!(http = %address, models = names.join(","), "listening");

    tokio::select! {
        result = shutdown_signal() => result?,
        result = reload_on_hangup(&app) => result?,
    }
    tracing::info!("draining");
    app.models.close();
    let drained = drain(&app, args.drain_timeout).await;
    let _ = stop.send(());
    // Every answer is on its way once the engines are empty; what remains is slow readers, who get a little longer.
    let finished = tokio::time::timeout(Duration::from_secs(5), server).await.is_ok();
    tracing::info!(drained, "stopped");
    match drained {
        true => {
            if !finished {
                tracing::warn!("connections were still open");
            }
            Ok(ExitCode::SUCCESS)
        }
        // A worker may be in the middle of a long batch that nobody may wait for any more.
        false => std::process::exit(1),
    }
}

/// Waits until the engines have answered everything; `false` when `timeout` passes first.
async fn drain(app: &App, timeout: Duration) -> bool {
    let empty = async {
        while app.models.is_busy() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(timeout, empty).await.is_ok()
}

/// Every SIGHUP reads all checkpoints again; one that cannot be loaded leaves its old one serving.
async fn reload_on_hangup(app: &Arc<App>) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        let app = app.clone();
        if tokio::task::spawn_blocking(move || app.models.iter().for_each(reload)).await.is_err() {
            tracing::error!("the reload panicked; what was served before still is");
        }
    }
    Ok(())
}

fn reload(served: &Served) {
    if let Err(error) = served.reload(None) {
        tracing::error!(model = %served.name, "not reloaded: {error:#}");
    }
}

async fn shutdown_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}
