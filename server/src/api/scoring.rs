//! The way of every scoring request, whichever front it came by: read, queued, answered, shaped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use qrm_model::Trajectory;
use qrm_model::prefix_cache::prompt_key;
use qrm_proto::{Input, RewardsRequest, RewardsResponse};

use super::auth::Client;
use super::error::ApiError;
use super::intake::Held;
use super::ndjson::Lines;
use super::seen::Seen;
use super::{App, off_thread};
use crate::engine::queue::{Preparing, Refused};
use crate::engine::{Engine, Terms, Ticket};
use crate::models::Loaded;
use crate::request::answer::Pending;
use crate::request::{Bounds, prepare};
use crate::telemetry::SPAN;

/// About what an answer has.
const BYTES_PER_TOKEN: usize = 16;

/// A request that is read and not yet queued.
pub(crate) struct Read {
    seen: Seen,
    loaded: Arc<Loaded>,
    trajectories: Vec<Trajectory>,
    pending: Pending,
    terms: Terms,
    tokenize: Duration,
    expected: Preparing,
}

/// Checks and tokenises a client's request, of which `held` is the share.
pub(crate) async fn read(
    app: &App,
    client: Client,
    request: RewardsRequest,
    held: &Held,
) -> Result<Read, ApiError> {
    let loaded = app.served(request.model.as_deref())?.current();
    read_for(app, client, request, held, loaded).await
}

/// The same for the checkpoint whose tokens the request already is: another may be served by now.
pub(crate) async fn read_for(
    app: &App,
    client: Client,
    request: RewardsRequest,
    held: &Held,
    loaded: Arc<Loaded>,
) -> Result<Read, ApiError> {
    client.seen.is_for(&loaded.name);
    if loaded.engine.is_closed() {
        return Err(ApiError::draining());
    }
    let expected = loaded.engine.expect();
    // Of no time at all it is to be said that it is none, not that it is up.
    let timeout = request.timeout_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
    let deadline = deadline(app, &client, timeout);
    let terms = Terms { client: client.name.clone(), priority: request.priority, deadline };

    let model = loaded.model.clone();
    let bounds = Bounds { trajectories: app.max_inputs, tokens: app.limits.max_queue_tokens };
    let (start, span) = (Instant::now(), tracing::info_span!(target: SPAN, "tokenize"));
    let has_text = request.inputs.iter().any(Input::has_text);
    let held = held.clone();
    let prepare = move || {
        let _held = held;
        span.in_scope(|| prepare(request, &model, bounds))
    };
    let prepared = async {
        match has_text {
            true => app.turns.tokenize(prepare).await,
            false => off_thread::run(usize::MAX, prepare).await,
        }
    };
    let prepared = within(deadline, prepared).await???;
    let tokenize = start.elapsed();
    app.metrics.tokenize_seconds.observe(tokenize.as_secs_f64());
    let (trajectories, pending) = prepared.split();
    let pending = pending.watched(&loaded.drift);
    if client.has_key {
        let tokens: usize = trajectories.iter().map(Trajectory::len).sum();
        app.metrics.key_tokens.with_label_values(&[&*client.name]).inc_by(tokens as u64);
    }
    Ok(Read { seen: client.seen, loaded, trajectories, pending, terms, tokenize, expected })
}

impl Read {
    /// Names the first prompt.
    pub(crate) fn prefix(&self) -> HeaderValue {
        let key = self.trajectories.first().map_or(0, |t| prompt_key(&t.prompt_ids));
        HeaderValue::try_from(format!("{key:016x}")).unwrap_or(HeaderValue::from_static("0"))
    }

    /// Queues, waits and shapes the answer. Dropped when the client disconnects, and with it the ticket and the queued work.
    pub(crate) async fn answer<T: Send + 'static>(
        self,
        app: &App,
        shape: impl FnOnce(RewardsResponse) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.queue(app)?.answer(shape).await
    }

    fn queue(self, app: &App) -> Result<Queued, ApiError> {
        let Self { loaded, trajectories, pending, terms, tokenize, expected: _expected, .. } = self;
        let deadline = terms.deadline;
        let ticket = loaded.engine.submit(trajectories, terms).map_err(refused(app, &loaded.engine))?;
        Ok(Queued { loaded, ticket, pending, tokenize, deadline })
    }

    /// The same, but waits for a place in the queue: for fronts that let their clients wait.
    pub(crate) async fn queue_in_turn(self, app: &App) -> Result<Queued, ApiError> {
        let Self { loaded, trajectories, pending, terms, tokenize, expected, .. } = self;
        let (engine, deadline) = (&loaded.engine, terms.deadline);
        let tokens = trajectories.iter().map(Trajectory::len).sum();
        let mut expected = Some(expected);
        let queued = async {
            loop {
                if engine.is_full(tokens) {
                    drop(expected.take()); // no batch waits for what waits for a batch
                    engine.room(tokens).await;
                }
                match engine.submit(trajectories.clone(), terms.clone()) {
                    Err(Refused::Full) => {} // another was faster
                    queued => return queued,
                }
            }
        };
        let ticket = within(deadline, queued).await?.map_err(refused(app, engine))?;
        Ok(Queued { loaded, ticket, pending, tokenize, deadline })
    }

    /// Queues; each trajectory is a line when it is scored. `held` is the body's share of what all may hold.
    pub(crate) fn lines(self, app: &App, held: Held) -> Result<Lines, ApiError> {
        let Self { seen, loaded, trajectories, pending, terms, tokenize, expected } = self;
        if !pending.is_separable() {
            return Err(ApiError::needs_all_rewards());
        }
        let deadline = terms.deadline;
        let queued = loaded.engine.stream(trajectories, terms);
        let (ticket, parts) = queued.map_err(refused(app, &loaded.engine))?;
        drop(expected);
        Ok(Lines { seen, parts, ticket, pending, loaded, tokenize, deadline, held })
    }
}

/// A request whose answer will come.
pub(crate) struct Queued {
    loaded: Arc<Loaded>,
    ticket: Ticket,
    pending: Pending,
    tokenize: Duration,
    deadline: Option<Instant>,
}

impl Queued {
    /// Waits and shapes the answer.
    pub(crate) async fn answer<T: Send + 'static>(
        self,
        shape: impl FnOnce(RewardsResponse) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let Self { loaded, ticket, pending, tokenize, deadline } = self;
        let output = within(deadline, ticket.answer()).await??;
        let bytes = output.scores.iter().map(|s| s.logit.len() * BYTES_PER_TOKEN).sum();
        let answer = move || shape(pending.answer(output, &loaded.model, &loaded.name, tokenize));
        off_thread::run(bytes, answer).await
    }
}

/// When the answer to what this client asks is no longer wanted.
pub(crate) fn deadline(app: &App, client: &Client, timeout: Option<Duration>) -> Option<Instant> {
    client.arrived.checked_add(timeout.or(app.default_timeout)?)
}

/// The result of what is done by the deadline.
pub(crate) async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = T>,
) -> Result<T, ApiError> {
    match deadline {
        None => Ok(work.await),
        Some(deadline) => {
            tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| ApiError::deadline())
        }
    }
}

fn refused(app: &App, engine: &Engine) -> impl Fn(Refused) -> ApiError {
    move |refused| {
        if refused == Refused::Full {
            app.metrics.refused.inc();
        }
        ApiError::refused(refused, engine, app.overload_status)
    }
}
