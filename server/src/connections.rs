//! Connections in: accepted as long as the process may hold them, and let go of when nothing happens on them.
//!
//! A connection without a request at work is closed after a while, be it idle, silent from the start or in the middle of a
//! head that never ends; so is one that does not take its answer. (How long a body may take is `api::json`'s.)

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

/// How long nothing may happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between a connection's requests.
    pub(crate) idle: Duration,
    /// Until a client takes some more of its answer.
    pub(crate) write: Duration,
}

/// Serves connections until `stop`; then those that have requests finish them.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let watcher = graceful.watcher();
                let router = router.clone();
                tokio::spawn(async move {
                    let requests = Requests::default();
                    let connection = connection(stream, peer, router, patience, &requests);
                    tokio::select! {
                        _ = watcher.watch(connection) => {} // its end is the client's affair
                        () = requests.none_for(patience.idle) => tracing::debug!(%peer, "closed: nothing happens"),
                    }
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

/// HTTP/1 or 2, whichever the client speaks.
fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    patience: Patience,
    requests: &Requests,
) -> impl hyper_util::server::graceful::GracefulConnection {
    let _ = stream.set_nodelay(true); // answers are written whole: nothing is gained by waiting for more
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience.write));
    let requests = requests.clone();
    let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
        let at_work = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|response| respond(response, at_work)) }
    });
    let builder = Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service)).into_owned()
}

/// The requests of one connection that are at work: from the end of the head until the answer is written.
#[derive(Clone)]
struct Requests(Arc<watch::Sender<usize>>);

/// One of them.
struct AtWork(Requests);

impl Default for Requests {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Requests {
    fn begin(&self) -> AtWork {
        self.0.send_modify(|n| *n += 1);
        AtWork(self.clone())
    }

    /// Until there was none for that long.
    async fn none_for(&self, time: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // The sender lives as long as `self`: no wait can fail.
            let _ = count.wait_for(|n| *n == 0).await;
            if tokio::time::timeout(time, count.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

fn respond(response: Response<Body>, at_work: AtWork) -> Response<Body> {
    response.map(|body| Body::new(Answer { body, rest: Bytes::new(), _at_work: at_work }))
}

/// A body in pieces: the next is taken when the client has taken those before it, so that the request is at work until
/// then.
struct Answer {
    body: Body,
    rest: Bytes,
    _at_work: AtWork,
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
        if self.rest.is_empty() {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
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
