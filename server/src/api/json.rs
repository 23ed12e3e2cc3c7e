//! JSON bodies in: the media type, the size, the pace, the syntax and the shape each have their own error.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::error::ApiError;
use super::intake::{Held, Unread};
use super::{App, off_thread};

/// A body of type `T`, and its share of what all requests may hold: to be kept until the answer is ready.
pub(crate) struct JsonBody<T>(pub(crate) T, pub(crate) Held);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.intake.most_each();
        check_head(request.headers(), limit)?;
        let body = app.intake.read(request.into_body()).await;
        let (body, held) = body.map_err(|unread| match unread {
            Unread::TooLarge => ApiError::body_too_large(limit),
            Unread::Full => ApiError::full("too much is being read", app.retry_after(), app.overload_status),
            Unread::Slow => ApiError::too_slow(),
            Unread::Broken => ApiError::not_json("the body cannot be read to its end"),
        })?;
        let value = off_thread::run(body.len(), move || parse(&body)).await??;
        Ok(Self(value, held))
    }
}

/// What can be refused before the body is read.
fn check_head(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let header = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let media_type = header(CONTENT_TYPE).and_then(|v| v.split(';').next()).map(str::trim);
    if !media_type.is_some_and(|t| t.eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::not_json_type());
    }
    // What could be decompressed has been, and its header is gone.
    if let Some(encoding) = header(CONTENT_ENCODING).filter(|v| !v.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::unknown_encoding(encoding));
    }
    match header(CONTENT_LENGTH).and_then(|v| v.parse::<u64>().ok()) {
        Some(length) if length > limit as u64 => Err(ApiError::body_too_large(limit)),
        _ => Ok(()),
    }
}

/// Bytes to `T`, naming the field at fault.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // serde takes an array of a struct's fields in their order for the struct.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        let syntax = serde_json::from_slice::<IgnoredAny>(body);
        return Err(match syntax {
            Err(error) => ApiError::not_json(error.to_string()),
            Ok(_) => ApiError::wrong_shape(".".into(), "the body is not an object".into()),
        });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize(&mut deserializer) {
        Ok(value) => match deserializer.end() {
            Ok(()) => Ok(value),
            Err(e) => Err(ApiError::not_json(e.to_string())),
        },
        // A wrong field may stand before broken syntax: only JSON can have a field at fault.
        Err(error) => match serde_json::from_slice::<Value>(body) {
            Err(syntax) => Err(ApiError::not_json(syntax.to_string())),
            Ok(_) => {
                let param = error.path().to_string();
                Err(ApiError::wrong_shape(missing(&param, &error), error.inner().to_string()))
            }
        },
    }
}

/// serde reports a missing field at the object that lacks it; the caller wants the field.
fn missing(path: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let message = error.inner().to_string();
    let field = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match field {
        None => path.to_owned(),
        Some(field) if path == "." => field.to_owned(),
        Some(field) => format!("{path}.{field}"),
    }
}
