//! `POST /v1/rewards`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_model::Trajectory;
use qrm_model::prefix_cache::prompt_key;
use qrm_proto::RewardsRequest;

use super::auth::Client;
use super::error::ApiError;
use super::json::JsonBody;
use super::ndjson::{self, Lines};
use super::{App, off_thread};
use crate::engine::Terms;
use crate::request::{Invalid, prepare};

/// Validates, queues and waits. Dropped when the client disconnects, and with it the ticket and the queued work.
pub(crate) async fn rewards(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    JsonBody(request, held): JsonBody<RewardsRequest>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let loaded = app.served(request.model.as_deref())?.current();
    if loaded.engine.is_closed() {
        return Err(ApiError::unavailable("draining", "the server is shutting down"));
    }
    let expected = loaded.engine.expect();
    let priority = request.priority;
    let timeout = request.timeout_ms.map(Duration::from_millis).or(app.default_timeout);
    let deadline = timeout.and_then(|t| arrived.checked_add(t));

    let (model, max_inputs) = (loaded.model.clone(), app.max_inputs);
    let prepared = tokio::task::spawn_blocking(move || prepare(request, &model, max_inputs));
    let prepared = prepared.await.map_err(|_| ApiError::internal("the request could not be read"))??;
    let tokenize = arrived.elapsed();
    app.metrics.tokenize_seconds.observe(tokenize.as_secs_f64());

    let (trajectories, pending) = prepared.split();
    let prefix = headers.get(PREFIX).cloned().unwrap_or_else(|| prefix_key(&trajectories));
    let terms = Terms { client, priority, deadline };
    let refused = |refused| ApiError::refused(refused, &loaded.engine, app.overload_status);
    if ndjson::is_asked_for(&headers) {
        if !pending.is_separable() {
            let message = "normalize needs every reward before the first can be told";
            return Err(Invalid::field("normalize", "not_available", message).into());
        }
        let (ticket, parts) = loaded.engine.stream(trajectories, terms).map_err(refused)?;
        drop(expected);
        let lines = Lines { parts, ticket, pending, loaded, tokenize, deadline, held };
        return Ok(([(PREFIX, prefix)], lines).into_response());
    }
    let ticket = loaded.engine.submit(trajectories, terms).map_err(refused)?;
    drop(expected);
    let output = match deadline {
        None => ticket.answer().await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), ticket.answer())
            .await
            .map_err(|_| ApiError::deadline())?,
    }?;
    let bytes = output.scores.iter().map(|s| s.logit.len() * BYTES_PER_TOKEN).sum();
    let answer = move || {
        let answer = pending.answer(output, &loaded.model, &loaded.name, tokenize);
        ([(PREFIX, prefix)], Json(answer)).into_response()
    };
    let answer = off_thread::run(bytes, answer).await?;
    drop(held);
    Ok(answer)
}

/// About what an answer has.
const BYTES_PER_TOKEN: usize = 16;

/// Names the prompt: a load balancer that hashes it sends what shares a prompt to the server that has it in its cache. Given
/// by the client, else made from the first prompt; in every answer.
const PREFIX: HeaderName = HeaderName::from_static("x-qrm-prefix");

fn prefix_key(trajectories: &[Trajectory]) -> HeaderValue {
    let key = trajectories.first().map_or(0, |t| prompt_key(&t.prompt_ids));
    HeaderValue::try_from(format!("{key:016x}")).unwrap_or(HeaderValue::from_static("0"))
}
