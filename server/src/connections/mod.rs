//! Connections in: as many as the process may hold, encrypted where that is asked for, and let go of when nothing happens
//! on them.
//!
//! A connection without a request at work is closed after a while, be it idle, silent from the start or in the middle of a
//! head that never ends; so is one that does not take its answer. (How long a body may take is `api::intake`'s.)
//!
//! - `at_work`: the requests of one connection, each until its answer is taken.

mod at_work;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::tls::Tls;
pub(crate) use at_work::UntilTaken;
use at_work::{Requests, respond};

/// Bytes of a request's head.
const HEAD: u32 = 64 << 10;
/// Requests of one HTTP/2 connection that are at work.
const STREAMS: u32 = 1024;
/// Between signs of life of an HTTP/2 peer, and until its absence is death.
const PULSE: Duration = Duration::from_secs(30);

/// How long nothing may happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between a connection's requests.
    pub(crate) idle: Duration,
    /// Until a client takes some more of its answer.
    pub(crate) write: Duration,
}

/// What connections are, whichever port they come to.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) patience: Patience,
    pub(crate) tls: Option<Arc<Tls>>,
    /// As many as there may be at once; more wait to be accepted.
    pub(crate) places: Arc<Semaphore>,
}

/// Serves connections until `stop` is true; then those that have requests finish them. Those that are there when `leave` is
/// true take no new ones from then on.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    terms: Terms,
    leave: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
) {
    let mut graceful = GracefulShutdown::new();
    let mut left = JoinSet::new();
    let mut leaving = std::pin::pin!(is_true(leave));
    let mut stopped = std::pin::pin!(is_true(stop.clone()));
    loop {
        // A place is asked for by whoever has come: else a port to which nobody comes would keep one.
        let next = async {
            let accepted = listener.accept().await;
            (accepted, terms.places.clone().acquire_owned().await)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = &mut leaving, if left.is_empty() => {
                left.spawn(std::mem::take(&mut graceful).shutdown());
                continue;
            }
            () = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (watcher, router, terms) = (graceful.watcher(), router.clone(), terms.clone());
                let stop = stop.clone();
                tokio::spawn(async move {
                    connection(stream, peer, router, terms, watcher, stop).await;
                    drop(place);
                });
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                // No descriptors left, say. Those that are open end sooner or later.
                tracing::error!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
    left.join_all().await;
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Until it is, or nobody can say any more.
async fn is_true(mut stop: watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    terms: Terms,
    watcher: Watcher,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true); // answers are written whole: nothing is gained by waiting for more
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(terms.patience.write));
    let stream = Box::pin(stream);
    let Some(tls) = terms.tls else {
        return requests(stream, peer, router, terms.patience, watcher).await;
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(terms.patience.idle, tls.acceptor().accept(stream)) => accepted,
        () = is_true(stop) => return, // a peer that says nothing would hold the server
    };
    match accepted {
        Ok(Ok(stream)) => requests(stream, peer, router, terms.patience, watcher).await,
        Ok(Err(error)) => tracing::debug!(%peer, "no TLS: {error}"),
        Err(_) => tracing::debug!(%peer, "closed: no TLS for too long"),
    }
}

async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    patience: Patience,
    watcher: Watcher,
) {
    let requests = Requests::default();
    tokio::select! {
        _ = watcher.watch(http(stream, peer, router, &requests)) => {} // its end is the client's affair
        () = requests.none_for(patience.idle) => tracing::debug!(%peer, "closed: nothing happens"),
        () = requests.untaken_for(patience.write) => tracing::debug!(%peer, "closed: no answer is taken"),
    }
}

/// HTTP/1 or 2, whichever the client speaks.
fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    requests: &Requests,
) -> impl GracefulConnection {
    let requests = requests.clone();
    let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
        let at_work = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|response| respond(response, at_work)) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD as usize);
    builder
        .http2()
        .max_header_list_size(HEAD)
        .max_concurrent_streams(STREAMS)
        .timer(TokioTimer::new())
        .keep_alive_interval(PULSE)
        .keep_alive_timeout(PULSE);
    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned()
}
