//! `POST /v1/rewards`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_proto::{Datum, RewardsRequest, RewardsResponse};

use super::auth::Client;
use super::error::ApiError;
use super::json::JsonBody;
use super::openapi::Refusals;
use super::{App, ndjson, scoring};

/// Names the prompt: a load balancer that hashes it sends what shares a prompt to the server that has it in its cache. Given
/// by the client, else made from the first prompt; in every answer.
pub(super) const PREFIX: HeaderName = HeaderName::from_static("x-qrm-prefix");

#[utoipa::path(
    post, path = "/v1/rewards", tag = "scoring", summary = "One reward per response token",
    description = "With `Accept: application/x-ndjson` the answer comes in lines: each entry of `data` when it is scored, then the rest.",
    request_body(content = RewardsRequest, example = json!({"inputs": [{"messages": [{"role": "user", "content": "Mia has 23 apples. Tom gives Mia 18 more. How many apples does Mia have now?"}], "responses": ["23 + 18 = 41", "23 + 18 = 31"]}], "include": ["tokens"]})),
    responses(
        (status = 200, description = "Rewards, in the order of the request", content((RewardsResponse = "application/json"), (Datum = "application/x-ndjson"))),
        Refusals,
    )
)]
pub(crate) async fn rewards(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    JsonBody(request, held): JsonBody<RewardsRequest>,
) -> Result<Response, ApiError> {
    let read = scoring::read(&app, client, request, &held).await?;
    let prefix = headers.get(PREFIX).cloned().unwrap_or_else(|| read.prefix());
    if ndjson::is_asked_for(&headers) {
        return Ok(([(PREFIX, prefix)], read.lines(&app, held)?).into_response());
    }
    let answer = read.answer(&app, |answer| Json(answer).into_response()).await?;
    Ok(([(PREFIX, prefix)], held.stays_with(answer)).into_response())
}
