//! Every refusal: status, code and shape declared together.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use qrm_proto::{ErrorBody, ErrorDetail};

use crate::engine::Engine;
use crate::engine::job::JobError;
use crate::engine::queue::Refused;
use crate::request::Invalid;
use crate::request::invalid::InvalidKind;

/// An answer that is not the one hoped for.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into(), param: None, retry_after: None }
    }

    fn request(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// The same of a front whose inputs are the elements of `list`.
    pub(crate) fn of_list(self, list: &str) -> Self {
        let name = |param: &String| {
            let rest = param.strip_prefix("inputs")?;
            match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((place, _)) => Some(format!("{list}[{place}]")),
                None => rest.is_empty().then(|| list.to_owned()),
            }
        };
        match self.param.as_ref().and_then(name) {
            Some(param) => Self { param: Some(param), ..self },
            None => self,
        }
    }

    /// The same of a front with one input, whose fields are the request's own.
    pub(crate) fn of_the_input(self) -> Self {
        let field = |param: &String| param.strip_prefix("inputs[0].").map(str::to_owned);
        match self.param.as_ref().and_then(field) {
            Some(field) => Self { param: Some(field), ..self },
            None => self,
        }
    }

    /// Seconds.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// 422: answers in parts cannot be normalised.
    pub(crate) fn needs_all_rewards() -> Self {
        let message = "normalize needs every reward before the first can be told";
        Invalid::field("normalize", "not_available", message).into()
    }

    /// 400: the body is not JSON.
    pub(crate) fn not_json(message: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "not_json", message)
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        let message = "a valid key is needed: Authorization: Bearer KEY";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    /// 401: there is no admin key, or it was not given.
    pub(crate) fn not_admin() -> Self {
        let message = "the admin key is needed: start with QRM_ADMIN_KEY, send Authorization: Bearer KEY";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "not_admin", message)
    }

    /// 408: the body comes too slowly.
    pub(crate) fn too_slow() -> Self {
        let message = "the body came too slowly";
        Self::request(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    /// 413: the body is longer than `limit` bytes.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::request(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 415.
    pub(crate) fn not_json_type() -> Self {
        let message = "Content-Type must be application/json";
        Self::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// 415: a `Content-Encoding` that is not understood.
    pub(crate) fn unknown_encoding(encoding: &str) -> Self {
        let message = format!("Content-Encoding {encoding:?} is none of gzip, zstd, identity");
        Self::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message)
    }

    /// 422: JSON of another shape than the route's.
    pub(crate) fn wrong_shape(param: String, message: String) -> Self {
        Invalid::field(param, "invalid_field", message).into()
    }

    /// 503 without a queue behind it: not loaded, not warm, draining.
    pub(crate) fn unavailable(code: &'static str, message: &str) -> Self {
        let retry_after = Some(1);
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", code, message) }
    }

    /// 503: the server is going.
    pub(crate) fn draining() -> Self {
        Self::unavailable("draining", "the server is shutting down")
    }

    /// 504.
    pub(crate) fn deadline() -> Self {
        let message = "the deadline passed before the result";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", "deadline_exceeded", message)
    }

    /// 422: a checkpoint that cannot be served.
    pub(crate) fn not_loaded(message: String) -> Self {
        Self::request(StatusCode::UNPROCESSABLE_ENTITY, "checkpoint_refused", message)
    }

    /// 409: one at a time.
    pub(crate) fn reloading() -> Self {
        Self::request(StatusCode::CONFLICT, "reload_in_progress", "another reload is under way")
    }

    /// 500. The message names no path, weight or text.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "engine_failed", message)
    }

    /// The queue's refusal, with the status the operator chose and the queue's own drain time.
    pub(crate) fn refused(refused: Refused, engine: &Engine, overload_status: StatusCode) -> Self {
        match refused {
            Refused::Closed => Self::draining(),
            Refused::TooLarge { .. } => Invalid::too_large(refused.to_string(), "inputs").into(),
            Refused::Full => Self::full(refused.to_string(), engine.retry_after(), overload_status),
        }
    }

    /// The operator's status for too much load, and when to come back.
    pub(crate) fn full(message: impl Into<String>, retry_after: Duration, status: StatusCode) -> Self {
        let retry_after = Some(retry_after.as_secs().max(1));
        Self { retry_after, ..Self::new(status, "overloaded_error", "queue_full", message) }
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let status = match invalid.kind {
            InvalidKind::NotFound => StatusCode::NOT_FOUND,
            InvalidKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            InvalidKind::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self { param: invalid.param, ..Self::request(status, invalid.code, invalid.message) }
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Deadline => Self::deadline(),
            JobError::Stopped => Self::draining(),
            JobError::Failed(_) => Self::internal("the engine failed on this batch"),
        }
    }
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        let ApiError { kind, code, message, param, .. } = error;
        Self { error: ErrorDetail { kind: kind.into(), code: code.into(), message, param } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(ErrorBody::from(self))).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// 404 for a path that is no route.
pub(crate) async fn unknown_route() -> ApiError {
    ApiError::request(StatusCode::NOT_FOUND, "unknown_route", "no such route")
}

/// 405 for a route's wrong method.
pub(crate) async fn wrong_method() -> ApiError {
    ApiError::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route has another method")
}
