//! `POST /admin/reload`: a new checkpoint in the place of an old one. Needs the admin key.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::json::JsonBody;

/// All optional: `{}` reads the first model's checkpoint again.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reload {
    /// Name of a served model; the first.
    model: Option<String>,
    /// Directory or hub id; the one the model was started with.
    source: Option<String>,
}

/// Answers once requests go to the new weights, 422 with the reason where they cannot be loaded: then nothing has changed.
pub(crate) async fn reload(
    State(app): State<Arc<App>>,
    JsonBody(request, _held): JsonBody<Reload>,
) -> Result<Json<Value>, ApiError> {
    let start = Instant::now();
    let reloaded = tokio::task::spawn_blocking(move || {
        let served = app.served(request.model.as_deref())?;
        let old = served.current().model.version().to_owned();
        let new =
            served.reload(request.source.as_deref()).map_err(|e| ApiError::not_loaded(format!("{e:#}")))?;
        Ok::<_, ApiError>((new, old))
    });
    let (new, old) = reloaded.await.map_err(|_| ApiError::internal("the reload panicked"))??;
    Ok(Json(json!({
        "model": *new.name,
        "model_version": new.model.version(),
        "previous_version": old,
        "seconds": start.elapsed().as_secs_f64(),
    })))
}
