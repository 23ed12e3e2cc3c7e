//! One log line, one count and one span per request.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::request_id::{self, REQUEST_ID};
use super::seen::Seen;
use super::{App, ending};
use crate::telemetry::{SPAN, otlp};

pub(crate) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    // The route's pattern, not the path: clients must not be able to make label values up.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let in_flight = app.metrics.begin(&route);
    let seen = Seen::default();
    request.extensions_mut().insert(seen.clone());
    let id = request_id::of(request.headers());
    let method = request.method().clone();
    let span = span(method.as_ref(), &route, &id, request.headers());
    let mut response = next.run(request).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id.clone());
    let status = response.status();
    ending::at_end(response, move |_| {
        let status = seen.failure().unwrap_or(status);
        let time = in_flight.end(&route, &seen, status.as_str());
        let (status, model, id) = (status.as_u16(), seen.model(), id.to_str().unwrap_or_default());
        close(&span, &status.to_string(), model, status >= 500);
        tracing::info!(%method, route, status, model, id, ms = time.as_micros() as f64 / 1e3, "request");
    })
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
