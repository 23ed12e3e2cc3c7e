//! `POST /tokenize` and `/detokenize`: the scoring routes' own tokenisation, to look at.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use qrm_model::text::Message;
use qrm_proto::tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

use super::App;
use super::error::ApiError;
use super::json::{Body, JsonBody};
use super::openapi::Refusals;
use crate::request::Invalid;

impl Body for TokenizeRequest {}
impl Body for DetokenizeRequest {}

#[utoipa::path(
    post, path = "/tokenize", tag = "tokens", summary = "The tokens of a text",
    request_body = TokenizeRequest,
    responses((status = 200, description = "Tokens", body = TokenizeResponse), Refusals)
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(request, _held): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    tokens(app, request).await.map(Json)
}

/// For any front.
pub(super) async fn tokens(app: Arc<App>, request: TokenizeRequest) -> Result<TokenizeResponse, ApiError> {
    let turns = app.turns.clone();
    let answer = turns.tokenize(move || {
        let loaded = app.served(request.model.as_deref())?.current();
        let text = loaded.model.text();
        let (rendered, param) = match (request.prompt, request.messages) {
            (Some(prompt), None) => (prompt, "prompt"),
            (None, Some(messages)) => {
                let messages: Vec<_> =
                    messages.into_iter().map(|m| Message { role: m.role, content: m.content }).collect();
                (text.render(&messages).map_err(|e| Invalid::text(&e, "messages"))?, "messages")
            }
            _ => {
                return Err(Invalid::field(
                    "prompt",
                    "missing_field",
                    "one of prompt and messages is needed",
                ));
            }
        };
        let encoded =
            text.encode(&rendered, request.add_special_tokens).map_err(|e| Invalid::text(&e, param))?;
        Ok(TokenizeResponse {
            token_strs: encoded.ids.iter().map(|id| text.token(*id).unwrap_or_default()).collect(),
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
    JsonBody(request, _held): JsonBody<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let turns = app.turns.clone();
    let answer = turns.tokenize(move || {
        let model = app.served(request.model.as_deref())?.current().model.clone();
        if let Some(at) = request.tokens.iter().position(|id| *id as usize >= model.vocab_size()) {
            let message =
                format!("token id {}, the vocabulary ends at {}", request.tokens[at], model.vocab_size());
            return Err(Invalid::field(format!("tokens[{at}]"), "token_id_out_of_range", message));
        }
        let prompt = model.text().decode(&request.tokens, request.skip_special_tokens);
        Ok(DetokenizeResponse { prompt: prompt.map_err(|e| Invalid::text(&e, "tokens"))? })
    });
    Ok(Json(answer.await??))
}
