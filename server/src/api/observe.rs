//! One log line and one count per request.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::App;

pub(crate) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // The route's pattern, not the path: clients must not be able to make label values up.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let (status, time) = (response.status().as_u16(), start.elapsed());
    app.metrics.requests.with_label_values(&[route.as_str(), &status.to_string()]).inc();
    app.metrics.request_seconds.with_label_values(&[route.as_str()]).observe(time.as_secs_f64());
    tracing::info!(%method, route, status, ms = time.as_micros() as f64 / 1e3, "request");
    response
}
