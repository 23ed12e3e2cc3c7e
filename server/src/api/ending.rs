//! What came of a request is known at its answer's end: a stream is at work until then, and may end in an error. Or its client
//! goes first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::response::Response;
use http_body::{Frame, SizeHint};

/// Hears once how a request ended.
pub(super) struct Hears<T>(Option<Heard<T>>);

type Heard<T> = Box<dyn FnOnce(Option<T>) + Send>;

impl<T> Hears<T> {
    /// `heard` is called with what it ended in, or with nothing where its client went first.
    pub(super) fn new(heard: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(heard)))
    }

    /// It ended in this.
    pub(super) fn of(mut self, end: T) {
        if let Some(heard) = self.0.take() {
            heard(Some(end));
        }
    }
}

impl<T> Drop for Hears<T> {
    fn drop(&mut self) {
        if let Some(heard) = self.0.take() {
            heard(None);
        }
    }
}

/// Calls `end`, with the trailers that there are, when the last of the answer is given out; at once where all of it is there.
/// Where the client goes first it is dropped.
pub(super) fn at_end(response: Response, end: impl FnOnce(Option<&HeaderMap>) + Send + 'static) -> Response {
    if response.body().size_hint().exact().is_some() {
        end(None);
        return response;
    }
    response.map(|body| Body::new(Ending { body, end: Some(Box::new(end)) }))
}

type End = Box<dyn FnOnce(Option<&HeaderMap>) + Send>;

struct Ending {
    body: Body,
    end: Option<End>,
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = match &frame {
            Some(Ok(frame)) => frame.trailers_ref(),
            _ => None,
        };
        let is_last = trailers.is_some() || !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
        if let Some(end) = self.end.take_if(|_| is_last) {
            end(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
