//! `GET /health /ready /v1/models /info /metrics`: what the process says of itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use qrm_proto::status::{Health, Info, Limits, ModelEntry, ModelFacts, ModelList};
use tokio::runtime::Handle;

use super::App;
use super::error::ApiError;
use super::openapi::Refusals;
use crate::models::{Loaded, Served};

/// The process lives.
#[utoipa::path(
    get, path = "/health", tag = "operation", summary = "The process lives",
    responses((status = 200, description = "It does", body = Health))
)]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The model is loaded and warm, the worker lives, and the server is not draining.
#[utoipa::path(
    get, path = "/ready", tag = "operation", summary = "The models are loaded and warm, and the server is not draining",
    responses((status = 200, description = "They are", body = Health), Refusals)
)]
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    app.models.ready().map_err(|(code, message)| ApiError::unavailable(code, message))?;
    Ok(Json(Health { status: "ready" }))
}

/// Prometheus text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operation", summary = "Prometheus metrics",
    responses((status = 200, description = "Text exposition format", body = String, content_type = "text/plain"), Refusals)
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.metrics.tasks.set(Handle::current().metrics().num_alive_tasks() as i64);
    app.metrics.ready.set(i64::from(app.models.ready().is_ok()));
    for served in app.models.iter() {
        let loaded = served.current();
        // One that was told to go and has is not dead.
        app.metrics.worker(&served.name, !loaded.engine.has_failed());
    }
    let text = app.metrics.render().map_err(|_| ApiError::internal("the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// The served models, in OpenAI's shape.
#[utoipa::path(
    get, path = "/v1/models", tag = "operation", summary = "The served models",
    responses((status = 200, description = "Names", body = ModelList), Refusals)
)]
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let entry =
        |served: &Served| ModelEntry { id: served.name.to_string(), object: "model", owned_by: "qrm" };
    Json(ModelList { object: "list", data: app.models.iter().map(entry).collect() })
}

/// Version, limits, and what each model is.
#[utoipa::path(
    get, path = "/info", tag = "operation", summary = "Version, limits, and what each model is",
    responses((status = 200, description = "Facts", body = Info), Refusals)
)]
pub(crate) async fn info(State(app): State<Arc<App>>) -> Json<Info> {
    Json(about(&app))
}

pub(super) fn about(app: &App) -> Info {
    let models: Vec<ModelFacts> = app.models.iter().map(|served| facts(&served.current())).collect();
    let budget = app.models.iter().next().map_or(0.0, |served| served.current().engine.budget());
    Info {
        version: env!("CARGO_PKG_VERSION"),
        first: models.first().cloned().unwrap_or_default(),
        models,
        limits: Limits {
            max_batch_tokens: budget as usize,
            max_queue_tokens: app.limits.max_queue_tokens,
            max_queue_requests: app.limits.max_queue_requests,
            max_inputs: app.max_inputs,
            max_body_bytes: app.intake.most_each(),
        },
    }
}

fn facts(loaded: &Loaded) -> ModelFacts {
    let model = &loaded.model;
    ModelFacts {
        model: loaded.name.to_string(),
        model_version: model.version().to_owned(),
        architecture: model.architecture().to_owned(),
        head: model.head().as_str().to_owned(),
        reward: model.head().default_reward().as_str().to_owned(),
        parameters: model.parameters(),
        vocab_size: model.vocab_size(),
        context_length: model.context_length(),
        dtype: loaded.devices.dtype.clone(),
        device: loaded.devices.names.clone(),
    }
}
