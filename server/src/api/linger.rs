//! Reads the rest of a refused request's body before the answer goes out.
//!
//! An HTTP/1 connection with unread bytes in it can only be closed, and closing it so may cost the client the answer:
//! instead of "413, at most N bytes" it sees a broken pipe, or the next request on the connection fails.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};

/// How long a refused client may go on sending.
const MOST: Duration = Duration::from_secs(2);

pub(crate) async fn linger(request: Request, next: Next) -> Response {
    // Who waits for "100 Continue" sends nothing when the refusal comes first.
    if request.headers().contains_key(EXPECT) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(head, Body::new(body.clone()))).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let _ = tokio::time::timeout(MOST, body.discard()).await;
    }
    response
}

/// A body that a handler reads, or drops, and that can still be read afterwards.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl Shared {
    async fn discard(self) {
        let mut body = self;
        while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
    }

    fn with<T>(&self, then: impl FnOnce(&mut Body) -> T) -> T {
        then(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}
