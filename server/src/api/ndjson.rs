//! An answer line by line, each trajectory when it is scored: `Accept: application/x-ndjson`.
//!
//! The lines are the entries of `data` in the order of their completion, then one line with the other fields, or, where the
//! work was not finished, one with the error. A client that goes takes its waiting work with it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use qrm_model::reward::{Stats, TokenScores};
use qrm_proto::ErrorBody;
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::intake::Held;
use super::seen::Seen;
use crate::engine::Ticket;
use crate::models::Loaded;
use crate::request::answer::Pending;

/// Its media type.
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// Whether the client asks for lines.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    accepts.flat_map(|v| v.split(',')).any(|t| t.split(';').next().is_some_and(|t| t.trim() == NDJSON))
}

/// An answer on its way.
pub(crate) struct Lines {
    /// For its count, should it fail.
    pub(crate) seen: Seen,
    pub(crate) parts: UnboundedReceiver<(usize, TokenScores)>,
    pub(crate) ticket: Ticket,
    pub(crate) pending: Pending,
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) tokenize: Duration,
    pub(crate) deadline: Option<Instant>,
    /// Counts as long as there are lines to come.
    pub(crate) held: Held,
}

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        let lines = unfold((Some(self), Vec::new()), |(lines, mut rewards)| async move {
            let (line, rest) = lines?.next(&mut rewards).await;
            Some((Ok::<_, Infallible>(line), (rest, rewards)))
        });
        let mut response = Body::from_stream(lines).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
        response
    }
}

impl Lines {
    /// The next line, and what comes after it. `rewards` are all so far.
    async fn next(mut self, rewards: &mut Vec<f32>) -> (Bytes, Option<Self>) {
        let part = match self.deadline {
            None => Ok(self.parts.recv().await),
            Some(deadline) => tokio::time::timeout_at(deadline.into(), self.parts.recv()).await,
        };
        match part {
            Ok(Some((index, scores))) => {
                let (datum, own) = self.pending.part(index, scores, &self.loaded.model);
                rewards.extend(own);
                (line(&datum), Some(self))
            }
            Ok(None) => (self.end(rewards).await, None),
            Err(_) => (failure(&self.seen, ApiError::deadline()), None),
        }
    }

    async fn end(self, rewards: &[f32]) -> Bytes {
        let Self { seen, ticket, pending, loaded, tokenize, held, .. } = self;
        let line = match ticket.answer().await {
            Ok(output) => {
                let stats = Stats::of(rewards.iter());
                line(&pending.closing(&output, &stats, &loaded.model, &loaded.name, tokenize))
            }
            Err(error) => failure(&seen, error.into()),
        };
        drop(held);
        line
    }
}

/// A last line that is an error.
fn failure(seen: &Seen, error: ApiError) -> Bytes {
    seen.has_failed(error.status());
    line(&ErrorBody::from(error))
}

/// Floats are finite and keys are strings, so nothing here has no JSON.
fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
