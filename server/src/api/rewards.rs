//! `POST /v1/rewards`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_proto::RewardsRequest;

use super::App;
use super::auth::Client;
use super::error::ApiError;
use super::json::JsonBody;
use crate::engine::Terms;
use crate::request::prepare;

/// Validates, queues and waits. Dropped when the client disconnects, and with it the ticket and the queued work.
pub(crate) async fn rewards(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    JsonBody(request): JsonBody<RewardsRequest>,
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
    let ticket = loaded.engine.submit(trajectories, Terms { client, priority, deadline });
    drop(expected);
    let ticket = ticket.map_err(|refused| ApiError::refused(refused, &loaded.engine, app.overload_status))?;
    let output = match deadline {
        None => ticket.answer().await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), ticket.answer())
            .await
            .map_err(|_| ApiError::deadline())?,
    }?;
    let answer = pending.answer(output, &loaded.model, &loaded.name, tokenize);
    Ok(Json(answer).into_response())
}
