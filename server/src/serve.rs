//! The serving process: load, listen, reload what changes, and on SIGTERM answer what was accepted.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::intake::Intake;
use crate::api::off_thread::{THREADS, Turns};
use crate::api::{self, App, grpc};
use crate::config::ServeArgs;
use crate::connections::{self, Patience, Terms};
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::models::{Models, Served};
use crate::tls::Tls;

/// Between looks at files that may have changed.
const LOOK: Duration = Duration::from_secs(2);
/// For answers to be written and sent, however little is left of the time to drain.
const LAST: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT. Success means that all accepted work was answered.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(THREADS).build()?;
    let (loaded, until_loaded) = oneshot::channel();
    let signals = {
        let _within = runtime.enter();
        runtime.spawn(leave_while_loading(Signals::new()?, until_loaded))
    };
    let keys = Keys::load(args.api_key_file.as_deref())?;
    let tls = args.tls().map(Tls::load).transpose()?.map(Arc::new);
    let metrics = Metrics::new()?;
    let limits = args.engine.limits(args.max_queue_tokens, args.max_queue_requests);
    let intake = Intake::new(
        args.max_request_bytes,
        args.max_body_bytes,
        args.stall_timeout,
        metrics.request_bytes.clone(),
    );
    let app = Arc::new(App {
        models: Models::load(&args.models()?, &args.engine.devices()?, limits, &metrics)?,
        metrics,
        keys,
        limits,
        max_inputs: args.max_inputs,
        intake: Arc::new(intake),
        turns: Turns::new(),
        overload_status: StatusCode::from_u16(args.overload_status)?,
        default_timeout: (args.default_timeout_ms > 0)
            .then(|| Duration::from_millis(args.default_timeout_ms)),
        idle_timeout: args.idle_timeout,
        cors: api::cors(&args.cors_origin)?,
        leaving: AtomicBool::new(false),
    });
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => tracing::debug!(files, "descriptors"),
        Err(error) => tracing::warn!("the limit of open files stays as it is: {error}"),
    }
    let code = runtime.block_on(listen(app, tls, &args, loaded, signals));
    // All that was accepted is answered, or its time is up: a reload or a text being read is nobody's any more.
    runtime.shutdown_background();
    code
}

async fn listen(
    app: Arc<App>,
    tls: Option<Arc<Tls>>,
    args: &ServeArgs,
    loaded: oneshot::Sender<()>,
    signals: JoinHandle<Signals>,
) -> anyhow::Result<ExitCode> {
    let terms = Terms {
        patience: Patience { idle: args.idle_timeout, write: args.stall_timeout },
        tls: tls.clone(),
        places: Arc::new(Semaphore::new(args.max_connections as usize)),
    };
    let ((leave, leaving), (stop, stopped)) = (watch::channel(false), watch::channel(false));
    let serve = |listener, router, leaving| {
        tokio::spawn(connections::serve(listener, router, terms.clone(), leaving, stopped.clone()))
    };
    let (http, grpc) = (bind(args, args.port).await?, bind(args, args.grpc_port).await?);
    let addresses = (http.local_addr()?, grpc.local_addr()?);
    // Of gRPC a connection is for good, unless it is told to go. HTTP's go with their next answer.
    let servers = (
        serve(http, api::router(app.clone()), stopped.clone()),
        serve(grpc, grpc::router(app.clone())?, leaving),
    );

    let warming = app.clone();
    tokio::task::spawn_blocking(move || warming.models.warm()).await??;
    let _ = loaded.send(());
    let Signals { mut terminate, mut interrupt, mut hangup } = signals.await?;
    let names: Vec<&str> = app.models.iter().map(|served| &*served.name).collect();
    let (http, grpc) = addresses;
    tracing::info!(%http, %grpc, tls = tls.is_some(), models = names.join(","), "listening");

    let is_dead = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = reload_on_hangup(&app, &mut hangup) => false,
        () = reload_files(&app, tls) => false,
        () = death(&app) => true,
    };
    tracing::info!("draining");
    let start = Instant::now();
    app.leave();
    let _ = leave.send(true);
    let drained = drain(&app, args.drain_timeout).await;
    let _ = stop.send(true);
    // The engines are empty; what they gave is still being written, and taken by slow readers.
    let servers = async { (servers.0.await, servers.1.await) };
    let left = args.drain_timeout.saturating_sub(start.elapsed()).max(LAST);
    let finished = tokio::time::timeout(left, servers).await.is_ok();
    tracing::info!(drained, finished, "stopped");
    match (drained, finished) {
        (true, true) if !is_dead => Ok(ExitCode::SUCCESS),
        (true, true) => Ok(ExitCode::FAILURE),
        (true, false) => Ok(ExitCode::FAILURE),
        // A worker may be in the middle of a long batch that nobody may wait for any more.
        (false, _) => std::process::exit(1),
    }
}

async fn bind(args: &ServeArgs, port: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((args.host.as_str(), port)).await;
    listener.with_context(|| format!("cannot listen on {}:{port}", args.host))
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

/// Until a model has no worker left. Whoever started the server can start it again, perhaps on another machine.
async fn death(app: &App) {
    while app.models.are_alive() {
        tokio::time::sleep(LOOK).await;
    }
    tracing::error!("a model's device has failed, so that it cannot be served any more");
}

/// Every SIGHUP reads all checkpoints again; one that cannot be loaded leaves its old one serving.
async fn reload_on_hangup(app: &Arc<App>, hangup: &mut Signal) {
    while hangup.recv().await.is_some() {
        let app = app.clone();
        if tokio::task::spawn_blocking(move || app.models.iter().for_each(reload)).await.is_err() {
            tracing::error!("the reload panicked; what was served before still is");
        }
    }
}

/// Keys and certificates that have changed are used; those that cannot be used are named once.
async fn reload_files(app: &Arc<App>, tls: Option<Arc<Tls>>) {
    let mut complaints = [String::new(), String::new()];
    loop {
        tokio::time::sleep(LOOK).await;
        let (app, tls) = (app.clone(), tls.clone());
        let look = move || [app.keys.reload(), tls.map_or(Ok(false), |tls| tls.reload())];
        let Ok(looked) = tokio::task::spawn_blocking(look).await else { continue };
        for ((what, result), last) in ["keys", "certificates"].into_iter().zip(looked).zip(&mut complaints) {
            let complaint = match result {
                Ok(is_new) => {
                    if is_new {
                        tracing::info!("new {what}");
                    }
                    String::new()
                }
                Err(error) => format!("{error:#}"),
            };
            if !complaint.is_empty() && complaint != *last {
                tracing::error!("the {what} stay as they were: {complaint}");
            }
            *last = complaint;
        }
    }
}

fn reload(served: &Served) {
    if let Err(error) = served.reload(None) {
        tracing::error!(model = %served.name, "not reloaded: {error:#}");
    }
}

/// What the server is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they are for whoever waits, and do nothing by themselves.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Loading may take minutes, and a container's first process has no handler but its own. Nothing was accepted that would have
/// to be answered; what is to be loaded again is being loaded. Then the signals are given back, and none is lost in between.
async fn leave_while_loading(mut signals: Signals, mut loaded: oneshot::Receiver<()>) -> Signals {
    loop {
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => std::process::exit(0),
            _ = signals.interrupt.recv() => std::process::exit(0),
            _ = signals.hangup.recv() => {}
            _ = &mut loaded => return signals,
        }
    }
}
