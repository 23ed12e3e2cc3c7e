//! The way of every scoring request, whichever route it came by: read, queued, answered, shaped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use axum::response::Response;
use qrm_model::Trajectory;
use qrm_model::prefix_cache::prompt_key;
use qrm_proto::{RewardsRequest, RewardsResponse};

use super::error::ApiError;
use super::intake::Held;
use super::ndjson::Lines;
use super::{App, off_thread};
use crate::engine::queue::Preparing;
use crate::engine::{Engine, Terms};
use crate::models::Loaded;
use crate::request::answer::Pending;
use crate::request::{Invalid, prepare};

/// About what an answer has.
const BYTES_PER_TOKEN: usize = 16;

/// A request that is read and not yet queued.
pub(crate) struct Read {
    loaded: Arc<Loaded>,
    trajectories: Vec<Trajectory>,
    pending: Pending,
    terms: Terms,
    tokenize: Duration,
    expected: Preparing,
}

/// Checks and tokenises a client's request.
pub(crate) async fn read(app: &App, client: Arc<str>, request: RewardsRequest) -> Result<Read, ApiError> {
    let arrived = Instant::now();
    let loaded = app.served(request.model.as_deref())?.current();
    if loaded.engine.is_closed() {
        return Err(ApiError::unavailable("draining", "the server is shutting down"));
    }
    let expected = loaded.engine.expect();
    let timeout = request.timeout_ms.map(Duration::from_millis).or(app.default_timeout);
    let deadline = timeout.and_then(|t| arrived.checked_add(t));
    let terms = Terms { client, priority: request.priority, deadline };

    let (model, max_inputs) = (loaded.model.clone(), app.max_inputs);
    let prepared = tokio::task::spawn_blocking(move || prepare(request, &model, max_inputs));
    let prepared = prepared.await.map_err(|_| ApiError::internal("the request could not be read"))??;
    let tokenize = arrived.elapsed();
    app.metrics.tokenize_seconds.observe(tokenize.as_secs_f64());
    let (trajectories, pending) = prepared.split();
    Ok(Read { loaded, trajectories, pending, terms, tokenize, expected })
}

impl Read {
    /// Names the first prompt.
    pub(crate) fn prefix(&self) -> HeaderValue {
        let key = self.trajectories.first().map_or(0, |t| prompt_key(&t.prompt_ids));
        HeaderValue::try_from(format!("{key:016x}")).unwrap_or(HeaderValue::from_static("0"))
    }

    /// Queues, waits and shapes the answer. Dropped when the client disconnects, and with it the ticket and the queued work.
    pub(crate) async fn answer(
        self,
        app: &App,
        shape: impl FnOnce(RewardsResponse) -> Response + Send + 'static,
    ) -> Result<Response, ApiError> {
        let Self { loaded, trajectories, pending, terms, tokenize, expected } = self;
        let deadline = terms.deadline;
        let ticket = loaded.engine.submit(trajectories, terms).map_err(refused(app, &loaded.engine))?;
        drop(expected);
        let output = match deadline {
            None => ticket.answer().await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), ticket.answer())
                .await
                .map_err(|_| ApiError::deadline())?,
        }?;
        let bytes = output.scores.iter().map(|s| s.logit.len() * BYTES_PER_TOKEN).sum();
        let answer = move || shape(pending.answer(output, &loaded.model, &loaded.name, tokenize));
        off_thread::run(bytes, answer).await
    }

    /// Queues; each trajectory is a line when it is scored. `held` is the body's share of what all may hold.
    pub(crate) fn lines(self, app: &App, held: Held) -> Result<Lines, ApiError> {
        let Self { loaded, trajectories, pending, terms, tokenize, expected } = self;
        if !pending.is_separable() {
            let message = "normalize needs every reward before the first can be told";
            return Err(Invalid::field("normalize", "not_available", message).into());
        }
        let deadline = terms.deadline;
        let queued = loaded.engine.stream(trajectories, terms);
        let (ticket, parts) = queued.map_err(refused(app, &loaded.engine))?;
        drop(expected);
        Ok(Lines { parts, ticket, pending, loaded, tokenize, deadline, held })
    }
}

fn refused(app: &App, engine: &Engine) -> impl Fn(crate::engine::queue::Refused) -> ApiError {
    move |refused| ApiError::refused(refused, engine, app.overload_status)
}
