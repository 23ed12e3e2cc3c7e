//! Connections in: as many as the process may hold, encrypted where that is asked for, and let go of when nothing happens
//! on them.
//!
//! A connection without a request at work is closed after a while, be it idle, silent from the start or in the middle of a
//! head that never ends; so is one that does not take its answer. (How long a body may take is `api::intake`'s.)

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::tls::Tls;

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

/// Serves connections until `stop` is true; then those that have requests finish them.
pub(crate) async fn serve(listener: TcpListener, router: Router, terms: Terms, stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let mut stopped = std::pin::pin!(is_true(stop.clone()));
    loop {
        // A place is asked for by whoever has come: else a port to which nobody comes would keep one.
        let next = async {
            let accepted = listener.accept().await;
            (accepted, terms.places.clone().acquire_owned().await)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
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

/// The requests of one connection that are at work: from the end of the head until the answer is written.
#[derive(Clone)]
struct Requests(Arc<Shared>);

struct Shared {
    at_work: watch::Sender<usize>,
    /// Answers that wait for the client to take what it was given last, and since when.
    untaken: Mutex<HashMap<usize, Instant>>,
}

/// One of them.
struct AtWork {
    requests: Requests,
    id: usize,
}

impl Default for Requests {
    fn default() -> Self {
        Self(Arc::new(Shared { at_work: watch::Sender::new(0), untaken: Mutex::default() }))
    }
}

impl Requests {
    fn begin(&self) -> AtWork {
        self.0.at_work.send_modify(|n| *n += 1);
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        AtWork { requests: self.clone(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Until there was none for that long.
    async fn none_for(&self, time: Duration) {
        let mut count = self.0.at_work.subscribe();
        loop {
            // The sender lives as long as `self`: no wait can fail.
            let _ = count.wait_for(|n| *n == 0).await;
            if tokio::time::timeout(time, count.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Until none of the requests at work did anything for that long but wait for the client to take their answers. (A
    /// connection into which nothing can be written breaks by itself; one of HTTP/2 can be written into while answers may
    /// not. One answer that is not taken does not end the others.)
    async fn untaken_for(&self, time: Duration) {
        loop {
            tokio::time::sleep(time / 4).await;
            let untaken = self.untaken();
            let is_all = !untaken.is_empty() && untaken.len() == *self.0.at_work.borrow();
            if is_all && untaken.values().all(|since| since.elapsed() > time) {
                return;
            }
        }
    }

    fn untaken(&self) -> MutexGuard<'_, HashMap<usize, Instant>> {
        self.0.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.requests.untaken().remove(&self.id);
        self.requests.0.at_work.send_modify(|n| *n -= 1);
    }
}

/// Goes with an answer, among its extensions, until the client has taken the last of it.
#[derive(Clone)]
pub(crate) struct UntilTaken(#[expect(dead_code, reason = "it is dropped")] Arc<dyn Send + Sync>);

impl UntilTaken {
    pub(crate) fn new(what: impl Send + Sync + 'static) -> Self {
        Self(Arc::new(what))
    }
}

fn respond(mut response: Response<Body>, at_work: AtWork) -> Response<Body> {
    let with_it = response.extensions_mut().remove();
    response.map(|body| Body::new(Answer { body, rest: Bytes::new(), at_work, _with_it: with_it }))
}

/// A body in pieces: the next is taken when the client has taken those before it, so that the request is at work until
/// then.
struct Answer {
    body: Body,
    rest: Bytes,
    at_work: AtWork,
    _with_it: Option<UntilTaken>,
}

/// Bytes.
const PIECE: usize = 64 << 10;

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.at_work.requests.untaken().remove(&self.at_work.id);
        if self.rest.is_empty() {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        self.at_work.requests.untaken().insert(self.at_work.id, Instant::now());
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_answer_that_is_not_taken_does_not_end_the_others() {
        let requests = Requests::default();
        let wait = || {
            let untaken = requests.untaken_for(Duration::from_millis(20));
            tokio::time::timeout(Duration::from_millis(200), untaken)
        };
        assert!(wait().await.is_err(), "nothing is at work");
        let (stalled, computing) = (requests.begin(), requests.begin());
        requests.untaken().insert(stalled.id, Instant::now());
        assert!(wait().await.is_err(), "the other is being computed");
        requests.untaken().insert(computing.id, Instant::now());
        assert!(wait().await.is_ok(), "neither is taken");
        requests.untaken().remove(&computing.id);
        drop(computing);
        assert!(wait().await.is_ok(), "there is no other");
    }
}
