//! `GET /openapi.json`: the HTTP front as OpenAPI 3.1, from its types.
#![allow(unused_qualifications, reason = "what the derive of `Refusals` writes")]

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use qrm_proto::ErrorBody;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, openapi};

use super::dialects::{openrlhf, slime, trl, vllm};
use super::{admin, rewards, status, tokenize};

/// What any route may answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "a schema only")]
pub(crate) enum Refusals {
    /// Not JSON
    #[response(status = 400)]
    NotJson(ErrorBody),
    /// A key is missing or wrong; under `/admin`, the admin key
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// Unknown route or model
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The route has another method
    #[response(status = 405)]
    WrongMethod(ErrorBody),
    /// The body comes too slowly
    #[response(status = 408)]
    TooSlow(ErrorBody),
    /// Another reload of the model is under way
    #[response(status = 409)]
    Reloading(ErrorBody),
    /// The body is too large, or holds too much
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// Not `application/json`, or an unknown encoding
    #[response(status = 415)]
    OtherType(ErrorBody),
    /// A field that says something it may not; `param` names it
    #[response(status = 422)]
    Invalid(ErrorBody),
    /// The queue is full, where the operator chose this status for it
    #[response(status = 429)]
    Full(ErrorBody),
    /// The engine failed on this request; the server lives on
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The queue is full (`Retry-After` says for how long), or the server is starting or shutting down
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// The deadline passed before the result
    #[response(status = 504)]
    Late(ErrorBody),
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "qrm-server",
        description = "Token-level rewards: one number for every token of a language model's answer."
    ),
    paths(
        rewards::rewards,
        openrlhf::get_reward,
        slime::rm,
        vllm::classify,
        vllm::pooling,
        trl::get_sequence_logprobs,
        tokenize::tokenize,
        tokenize::detokenize,
        status::health,
        status::ready,
        status::info,
        status::models,
        status::metrics,
        admin::reload
    ),
    components(schemas(qrm_proto::ErrorBody)),
    modifiers(&Bearer),
    security((), ("key" = []))
)]
struct Api;

/// Keys, where the operator wants them.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

static JSON: LazyLock<String> = LazyLock::new(|| Api::openapi().to_json().unwrap_or_default());

pub(crate) async fn json() -> Response {
    ([(CONTENT_TYPE, "application/json")], JSON.as_str()).into_response()
}
