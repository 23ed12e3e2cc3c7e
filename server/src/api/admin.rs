//! `POST /admin/reload`: a new checkpoint in the place of an old one. Needs the admin key.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use qrm_proto::status::{ReloadRequest, ReloadResponse};

use super::App;
use super::error::ApiError;
use super::json::{Body, JsonBody};
use super::openapi::Refusals;

impl Body for ReloadRequest {}

/// Answers once requests go to the new weights, 422 with the reason where they cannot be loaded and 409 while another reload
/// is under way: then nothing has changed.
#[utoipa::path(
    post, path = "/admin/reload", tag = "operation", summary = "A new checkpoint in the place of an old one; needs the admin key",
    request_body = ReloadRequest,
    responses((status = 200, description = "Requests go to the new weights", body = ReloadResponse), Refusals)
)]
pub(crate) async fn reload(
    State(app): State<Arc<App>>,
    JsonBody(request, _held): JsonBody<ReloadRequest>,
) -> Result<Json<ReloadResponse>, ApiError> {
    let start = Instant::now();
    let reloaded = tokio::task::spawn_blocking(move || {
        let served = app.served(request.model.as_deref())?;
        let old = served.current().model.version().to_owned();
        let new = served.try_reload(request.source.as_deref()).ok_or_else(ApiError::reloading)?;
        let new = new.map_err(|e| ApiError::not_loaded(format!("{e:#}")))?;
        Ok::<_, ApiError>((new, old))
    });
    let (new, old) = reloaded.await.map_err(|_| ApiError::internal("the reload panicked"))??;
    Ok(Json(ReloadResponse {
        model: new.name.to_string(),
        model_version: new.model.version().to_owned(),
        previous_version: old,
        seconds: start.elapsed().as_secs_f64(),
    }))
}
