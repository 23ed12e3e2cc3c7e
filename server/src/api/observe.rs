//! One log line, one count and one span per request.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::App;
use super::ending::{self, Hears};
use super::request_id::{self, REQUEST_ID};
use super::seen::Seen;
use crate::telemetry::{SPAN, otlp};

/// In the count of requests whose client went before its answer had ended; no server's status, but known for this.
const GONE: u16 = 499;

pub(crate) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    // The route's pattern, not the path: clients must not be able to make label values up.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let in_flight = app.metrics.begin(&route);
    let seen = Seen::default();
    request.extensions_mut().insert(seen.clone());
    let id = request_id::of(request.headers());
    let (method, version) = (request.method().clone(), request.version());
    let span = span(method.as_ref(), &route, &id, request.headers());
    let work = next.run(request).instrument(span.clone());
    let named = id.clone();
    let hears = Hears::new(move |status: Option<StatusCode>| {
        let status = status.map_or(GONE, |status| seen.failure().unwrap_or(status).as_u16());
        let time = in_flight.end(&route, &seen, &status.to_string());
        let (model, id) = (seen.model(), id.to_str().unwrap_or_default());
        close(&span, &status.to_string(), model, status >= 500);
        tracing::info!(%method, route, status, model, id, ms = time.as_micros() as f64 / 1e3, "request");
    });
    let mut response = work.await;
    response.headers_mut().insert(REQUEST_ID, named);
    if app.is_leaving() && version <= Version::HTTP_11 {
        // Its next request is to find another server. (HTTP/2 has no such header: here it is told at the end, as gRPC's port is
        // at the beginning.)
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    ending::at_end(response, move |_| hears.of(status))
}

/// A request's place in its client's trace. Named as OpenTelemetry's conventions have it.
pub(super) fn span(method: &str, route: &str, id: &HeaderValue, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: SPAN,
        "request",
        otel.name = format!("{method} {route}").trim_start(),
        otel.kind = "server",
        otel.status_code = Empty,
        route,
        request_id = id.to_str().unwrap_or_default(),
        status = Empty,
        model = Empty,
    );
    otlp::adopt(&span, headers);
    span
}

/// What came of it.
pub(super) fn close(span: &Span, status: &str, model: &str, failed: bool) {
    span.record("status", status);
    span.record("model", model);
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}
