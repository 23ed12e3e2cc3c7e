//! `GET /health /ready /v1/models /info /metrics`: what the process says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;

/// The process lives.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The model is loaded and warm, the worker lives, and the server is not draining.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.engine.is_closed() {
        return Err(ApiError::unavailable("draining", "the server is shutting down"));
    }
    if !app.engine.is_alive() {
        return Err(ApiError::unavailable("worker_dead", "the worker has stopped"));
    }
    if !app.warm.load(Ordering::Acquire) {
        return Err(ApiError::unavailable("warming_up", "the model is warming up"));
    }
    Ok(Json(json!({"status": "ready"})))
}

/// Prometheus text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.render().map_err(|_| ApiError::internal("the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// The served models, in OpenAI's shape.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{"id": app.model_name, "object": "model", "owned_by": "qrm"}],
    }))
}

/// Version, model and limits.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let model = &app.model;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": app.model_name,
        "architecture": model.architecture(),
        "head": model.head(),
        "reward": model.head().default_reward(),
        "parameters": model.parameters(),
        "vocab_size": model.vocab_size(),
        "context_length": model.context_length(),
        "dtype": "f32",
        "device": "cpu",
        "limits": {
            "max_batch_tokens": app.limits.max_batch_tokens,
            "max_queue_tokens": app.limits.max_queue_tokens,
            "max_queue_requests": app.limits.max_queue_requests,
            "max_inputs": app.max_inputs,
            "max_body_bytes": app.max_body_bytes,
        },
    }))
}
