//! The serving process: load, listen, and on SIGTERM answer what was accepted.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::http::StatusCode;
use qrm_model::Trajectory;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::api::auth::Keys;
use crate::api::{App, router};
use crate::config::ServeArgs;
use crate::engine::{Engine, Limits};
use crate::metrics::Metrics;
use crate::model;

/// Serves until SIGTERM or SIGINT. Success means that all accepted work was answered.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let keys = Keys::load(args.api_key_file.as_deref())?;
    let model = model::load(args.engine.model.as_deref())?;
    let metrics = Metrics::new()?;
    let limits = Limits {
        max_batch_tokens: args.engine.max_batch_tokens,
        max_queue_tokens: args.max_queue_tokens,
        max_queue_requests: args.max_queue_requests,
        prefix_cache_bytes: args.engine.prefix_cache_mib << 20,
    };
    let engine = Engine::start(model.clone(), args.engine.threads, limits, metrics.clone())?;
    let model_name =
        args.served_model_name.clone().unwrap_or_else(|| model::name(args.engine.model.as_deref()));
    let app = Arc::new(App {
        engine,
        model,
        model_name,
        metrics,
        keys,
        limits,
        max_inputs: args.max_inputs,
        max_body_bytes: args.max_body_bytes,
        overload_status: StatusCode::from_u16(args.overload_status)?,
        default_timeout: (args.default_timeout_ms > 0)
            .then(|| Duration::from_millis(args.default_timeout_ms)),
        warm: AtomicBool::new(false),
    });
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(listen(app, &args))
}

async fn listen(app: Arc<App>, args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind((args.host.as_str(), args.port)).await;
    let listener = listener.with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(app.clone())).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());

    warm_up(&app).await?;
    tracing::info!(http = %address, model = app.model_name, "listening");

    shutdown_signal().await?;
    tracing::info!("draining");
    app.engine.close();
    let drained = drain(&app, args.drain_timeout).await;
    let _ = stop.send(());
    // Every answer is on its way once the engine is empty; what remains is slow readers, who get a little longer.
    let finished = tokio::time::timeout(Duration::from_secs(5), server).await.is_ok();
    tracing::info!(drained, "stopped");
    match drained {
        true => {
            if !finished {
                tracing::warn!("connections were still open");
            }
            Ok(ExitCode::SUCCESS)
        }
        // The worker may be in the middle of a long batch that nobody may wait for any more.
        false => std::process::exit(1),
    }
}

/// Runs one token through the engine, so that `/ready` means ready.
async fn warm_up(app: &App) -> anyhow::Result<()> {
    let trajectory = Trajectory { prompt_ids: [0].into(), response_ids: [0].into() };
    let ticket = app.engine.submit(vec![trajectory], 0, None)?;
    ticket.answer().await.context("the first batch failed")?;
    app.warm.store(true, Ordering::Release);
    Ok(())
}

/// Waits until the worker has answered everything; `false` when `timeout` passes first.
async fn drain(app: &App, timeout: Duration) -> bool {
    let empty = async {
        while app.engine.is_alive() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(timeout, empty).await.is_ok()
}

async fn shutdown_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}
