//! What every call passes before its method: the key, the size and pace of its body, its deadline; and its count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use tonic::{Code, Status};
use tracing::Instrument;

use super::LOOK;
use crate::api::App;
use crate::api::auth;
use crate::api::ending::{self, Hears};
use crate::api::error::ApiError;
use crate::api::observe;
use crate::api::request_id::{self, REQUEST_ID};
use crate::api::seen::Seen;

/// Clients must not be able to make label values up.
const METHODS: [&str; 8] = [
    "/qrm.v1.RewardService/Score",
    SCORE_STREAM,
    "/qrm.v1.RewardService/Info",
    "/qrm.v1.RewardService/Tokenize",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const SCORE_STREAM: &str = "/qrm.v1.RewardService/ScoreStream";

/// When the call's answer is no longer wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

pub(super) async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let method = METHODS.into_iter().find(|m| *m == request.uri().path()).unwrap_or("unknown");
    let in_flight = app.metrics.begin(method);
    let seen = Seen::default();
    request.extensions_mut().insert(seen.clone());
    let id = request_id::of(request.headers());
    let span = observe::span("", method.trim_start_matches('/'), &id, request.headers());
    let named_by = id.clone();
    let called = async {
        match admit(&app, method, request).await {
            Ok(request) => named(&app, method, next.run(request).await),
            Err(error) => Status::from(error).into_http(),
        }
    };
    let called = called.instrument(span.clone());
    let hears = Hears::new(move |code: Option<Code>| {
        let code = code.unwrap_or(Code::Cancelled);
        let status = format!("{code:?}");
        let time = in_flight.end(method, &seen, &status);
        let (model, id) = (seen.model(), id.to_str().unwrap_or_default());
        let failed = matches!(code, Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable);
        observe::close(&span, &status, model, failed);
        tracing::info!(route = method, status, model, id, ms = time.as_micros() as f64 / 1e3, "call");
    });
    let mut response = called.await;
    response.headers_mut().insert(REQUEST_ID, named_by);
    // A call that ends well, and a stream however it ends, says so after its messages.
    let refusal = Status::from_header_map(response.headers());
    ending::at_end(response, move |trailers| {
        hears.of(trailers.and_then(Status::from_header_map).or(refusal).map_or(Code::Ok, |s| s.code()));
    })
}

/// The refusal of a message that is too long when it is decompressed, which is tonic's own, as ours.
fn named(app: &App, method: &str, response: Response) -> Response {
    let headers = response.headers();
    let is_too_long = |status: &Status| matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange);
    let is_tonics = method.starts_with("/qrm.v1.") && !headers.contains_key("qrm-code");
    match Status::from_header_map(headers).filter(is_too_long).filter(|_| is_tonics) {
        Some(_) => Status::from(ApiError::body_too_large(app.intake.most_each())).into_http(),
        None => response,
    }
}

async fn admit(app: &Arc<App>, method: &str, mut request: Request) -> Result<Request, ApiError> {
    auth::admit(app, &mut request)?;
    if let Some(timeout) = timeout(request.headers()) {
        let deadline = Instant::now().checked_add(timeout);
        deadline.map(|deadline| request.extensions_mut().insert(Deadline(deadline)));
    }
    if method == SCORE_STREAM {
        let (mut head, body) = request.into_parts();
        let (body, meter) = app.intake.meter(body);
        head.extensions.insert(meter);
        return Ok(Request::from_parts(head, body));
    }
    // Of the other services a client may keep a stream open, but not the server, which waits for it at its end.
    if !method.starts_with("/qrm.v1.") {
        let app = app.clone();
        return Ok(request.map(|body| Body::from_stream(body.into_data_stream().take_until(over(app)))));
    }
    let (mut head, body) = request.into_parts();
    let body = app.intake.read(body).await;
    let (body, held) = body.map_err(|unread| app.unread(unread))?;
    head.extensions.insert(Arc::new(held)); // goes when the message has been decoded
    Ok(Request::from_parts(head, Body::from(body)))
}

/// Until the last accepted work is done.
async fn over(app: Arc<App>) {
    while !app.models.is_done() {
        tokio::time::sleep(LOOK).await;
    }
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header"));
            timeout(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for bad in ["", "5", "S", "123456789S", "-1S", "1.5S", "5s"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
