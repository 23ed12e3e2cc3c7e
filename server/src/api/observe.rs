//! One log line and one count per request.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use super::seen::Seen;

pub(crate) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    // The route's pattern, not the path: clients must not be able to make label values up.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let in_flight = app.metrics.begin(&route);
    let seen = Seen::default();
    request.extensions_mut().insert(seen.clone());
    let method = request.method().clone();
    let response = next.run(request).await;
    let status = response.status();
    let time = in_flight.end(&route, &seen, status.as_str());
    let (status, model) = (status.as_u16(), seen.model());
    tracing::info!(%method, route, status, model, ms = time.as_micros() as f64 / 1e3, "request");
    response
}
