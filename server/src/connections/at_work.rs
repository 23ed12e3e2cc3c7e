//! A request is at work until its client has taken the last of its answer: what that means, and how long it may last.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;

/// The requests of one connection that are at work: from the end of the head until the answer is written.
#[derive(Clone)]
pub(super) struct Requests(Arc<Shared>);

struct Shared {
    at_work: watch::Sender<usize>,
    /// Answers that wait for the client to take what it was given last, and since when.
    untaken: Mutex<HashMap<usize, Instant>>,
}

/// One of them.
pub(super) struct AtWork {
    requests: Requests,
    id: usize,
}

impl Default for Requests {
    fn default() -> Self {
        Self(Arc::new(Shared { at_work: watch::Sender::new(0), untaken: Mutex::default() }))
    }
}

impl Requests {
    pub(super) fn begin(&self) -> AtWork {
        self.0.at_work.send_modify(|n| *n += 1);
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        AtWork { requests: self.clone(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Until there was none for that long.
    pub(super) async fn none_for(&self, time: Duration) {
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
    pub(super) async fn untaken_for(&self, time: Duration) {
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

/// The answer to a request that is at work until all of it is taken.
pub(super) fn respond(mut response: Response<Body>, at_work: AtWork) -> Response<Body> {
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
