//! `POST /v1/rewards`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_proto::RewardsRequest;

use super::auth::Client;
use super::error::ApiError;
use super::json::JsonBody;
use super::{App, ndjson, scoring};

/// Names the prompt: a load balancer that hashes it sends what shares a prompt to the server that has it in its cache. Given
/// by the client, else made from the first prompt; in every answer.
const PREFIX: HeaderName = HeaderName::from_static("x-qrm-prefix");

pub(crate) async fn rewards(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    JsonBody(request, held): JsonBody<RewardsRequest>,
) -> Result<Response, ApiError> {
    let read = scoring::read(&app, client, request).await?;
    let prefix = headers.get(PREFIX).cloned().unwrap_or_else(|| read.prefix());
    if ndjson::is_asked_for(&headers) {
        return Ok(([(PREFIX, prefix)], read.lines(&app, held)?).into_response());
    }
    let answer = read.answer(&app, |answer| Json(answer).into_response()).await?;
    drop(held);
    Ok(([(PREFIX, prefix)], answer).into_response())
}
