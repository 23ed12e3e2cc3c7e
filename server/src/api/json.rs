//! JSON bodies in: the media type, the size, the pace, the syntax and the shape each have their own error.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use qrm_proto::RewardsRequest;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::intake::Held;
use super::{App, count, off_thread};
use crate::request::Invalid;

/// What a route takes.
pub(crate) trait Body: DeserializeOwned + Send + 'static {
    /// The field with an element for each trajectory, of routes that take several.
    const LIST: Option<&'static str> = None;
}

impl Body for RewardsRequest {
    const LIST: Option<&'static str> = Some("inputs");
}

/// A body of type `T`, and its share of what all requests may hold: to be kept until the answer is ready.
pub(crate) struct JsonBody<T>(pub(crate) T, pub(crate) Held);

impl<T: Body> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        check_head(request.headers(), app.intake.most_each())?;
        let body = app.intake.read(request.into_body()).await;
        let (body, held) = body.map_err(|unread| app.unread(unread))?;
        let (max_inputs, held_bytes) = (app.max_inputs, body.len());
        let shared = held.clone();
        let parse = move || {
            let _shared = shared; // until nobody has the body any more, its client included
            parse(&body, max_inputs)
        };
        Ok(Self(off_thread::run(held_bytes, parse).await??, held))
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
pub(super) fn parse<T: Body>(body: &[u8], max_inputs: usize) -> Result<T, ApiError> {
    let body = std::str::from_utf8(body).map_err(|e| ApiError::not_json(e.to_string()))?;
    // A wrong field may stand before broken syntax: only JSON can have a field at fault.
    let count = count::trajectories(body, T::LIST).map_err(|e| ApiError::not_json(e.to_string()))?;
    if let Some(list) = T::LIST.filter(|_| count > max_inputs) {
        return Err(Invalid::too_many(count, max_inputs, list).into());
    }
    // serde takes an array of a struct's fields in their order for the struct.
    if !body.trim_ascii_start().starts_with('{') {
        return Err(ApiError::wrong_shape(".".into(), "the body is not an object".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_str(body);
    serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| ApiError::wrong_shape(missing(&error), error.inner().to_string()))
}

/// serde reports a missing field at the object that lacks it; the caller wants the field.
fn missing(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let message = error.inner().to_string();
    let field = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match field {
        None => path,
        Some(field) if path == "." => field.to_owned(),
        Some(field) => format!("{path}.{field}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes after the inputs that are too many would be named if anything were read before they are counted.
    #[test]
    fn inputs_are_counted_before_they_are_read() {
        let code = |body: &str| parse::<RewardsRequest>(body.as_bytes(), 2).map(drop).map_err(|e| e.code());
        assert_eq!(code(r#"{"inputs":[{},{},{},3]}"#), Err("request_too_large"));
        assert_eq!(code(r#"{"inputs":[{"responses":["","",""]},3]}"#), Err("request_too_large"));
        assert_eq!(code(r#"{"inputs":[{},{},3]}"#), Err("invalid_field"));
        assert_eq!(code(r#"{"inputs":[{},{}]}"#), Ok(()));
    }

    #[test]
    fn a_wrong_field_before_broken_syntax_is_no_json() {
        let code = |body: &[u8]| parse::<RewardsRequest>(body, 2).map(drop).map_err(|e| e.code());
        assert_eq!(code(br#"{"inputs":3,"#), Err("not_json"));
        assert_eq!(code(b"{\"model\":3,\"inputs\":\"\xff\"}"), Err("not_json"));
        assert_eq!(code(br#"{"model":"\ud800","inputs":[]}"#), Err("invalid_field"));
        assert_eq!(code(br#"{"inputs":[{"spans":[[1,2,3]]}]}"#), Err("invalid_field"));
        assert_eq!(code(br#"{"model":3,"inputs":[]}"#), Err("invalid_field"));
    }
}
