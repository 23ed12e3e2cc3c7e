//! `POST /tokenize` and `/detokenize`: the scoring routes' own tokenisation, to look at.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qrm_proto::tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

use super::App;
use super::error::ApiError;
use super::intake::Held;
use super::json::{Body, JsonBody};
use super::openapi::Refusals;
use crate::request::{Invalid, text};

impl Body for TokenizeRequest {}
impl Body for DetokenizeRequest {}

#[utoipa::path(
    post, path = "/tokenize", tag = "tokens", summary = "The tokens of a text",
    request_body = TokenizeRequest,
    responses((status = 200, description = "Tokens", body = TokenizeResponse), Refusals)
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(request, held): JsonBody<TokenizeRequest>,
) -> Result<Response, ApiError> {
    let answer = tokens(&app, request, &held).await?;
    Ok(held.stays_with(Json(answer).into_response()))
}

/// For any front; `held` is the request's share.
pub(super) async fn tokens(
    app: &App,
    request: TokenizeRequest,
    held: &Held,
) -> Result<TokenizeResponse, ApiError> {
    let (loaded, held) = (app.served(request.model.as_deref())?.current(), held.clone());
    let answer = app.turns.tokenize(move || {
        let _held = held;
        let (rendered, param) = match (request.prompt, request.messages) {
            (Some(prompt), None) => (prompt, "prompt"),
            (None, Some(messages)) => (text::render(&loaded.model, messages, "messages")?, "messages"),
            _ => {
                return Err(Invalid::field(
                    "prompt",
                    "missing_field",
                    "one of prompt and messages is needed",
                ));
            }
        };
        let encoded = text::encode(&loaded.model, &rendered, request.add_special_tokens, param)?;
        Ok(TokenizeResponse {
            token_strs: encoded
                .ids
                .iter()
                .map(|id| loaded.model.text().token(*id).unwrap_or_default())
                .collect(),
            count: encoded.ids.len(),
            tokens: encoded.ids,
            offsets: encoded.offsets,
            max_model_len: loaded.model.context_length(),
        })
    });
    Ok(answer.await??)
}

#[utoipa::path(
    post, path = "/detokenize", tag = "tokens", summary = "The text of tokens",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "Text", body = DetokenizeResponse), Refusals)
)]
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(request, held): JsonBody<DetokenizeRequest>,
) -> Result<Response, ApiError> {
    let (loaded, shared) = (app.served(request.model.as_deref())?.current(), held.clone());
    let answer = app.turns.tokenize(move || {
        let _shared = shared;
        let prompt = text::decode(&loaded.model, &request.tokens, request.skip_special_tokens, "tokens")?;
        Ok::<_, Invalid>(DetokenizeResponse { prompt })
    });
    let answer = answer.await??;
    Ok(held.stays_with(Json(answer).into_response()))
}
