//! `GET /health /ready /v1/models /info /metrics`: what the process says of itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::App;
use super::error::ApiError;
use crate::models::{Loaded, Served};

/// The process lives.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The model is loaded and warm, the worker lives, and the server is not draining.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.models.ready().map_err(|(code, message)| ApiError::unavailable(code, message))?;
    Ok(Json(json!({"status": "ready"})))
}

/// Prometheus text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.metrics.tasks.set(Handle::current().metrics().num_alive_tasks() as i64);
    let text = app.metrics.render().map_err(|_| ApiError::internal("the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// The served models, in OpenAI's shape.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let model = |served: &Served| json!({"id": *served.name, "object": "model", "owned_by": "qrm"});
    Json(json!({"object": "list", "data": app.models.iter().map(model).collect::<Vec<_>>()}))
}

/// Version, limits, and what each model is; the first one's facts at the top too.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.models.iter().map(|served| facts(&served.current())).collect();
    let budget = app.models.iter().next().map(|served| served.current().engine.budget() as u64);
    let mut info = models.first().cloned().unwrap_or_default();
    info["version"] = json!(env!("CARGO_PKG_VERSION"));
    info["models"] = models.into();
    info["limits"] = json!({
        "max_batch_tokens": budget,
        "max_queue_tokens": app.limits.max_queue_tokens,
        "max_queue_requests": app.limits.max_queue_requests,
        "max_inputs": app.max_inputs,
        "max_body_bytes": app.intake.most_each(),
    });
    Json(info)
}

fn facts(loaded: &Loaded) -> Value {
    let model = &loaded.model;
    json!({
        "model": *loaded.name,
        "model_version": model.version(),
        "architecture": model.architecture(),
        "head": model.head(),
        "reward": model.head().default_reward(),
        "parameters": model.parameters(),
        "vocab_size": model.vocab_size(),
        "context_length": model.context_length(),
        "dtype": "f32",
        "device": "cpu",
    })
}
