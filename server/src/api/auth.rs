//! Who asks: `Authorization: Bearer KEY`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::ApiError;
use super::seen::Seen;

/// Routes that are open without a key: what a load balancer asks, and what a browser shows before it has one.
const OPEN: [&str; 7] = [
    "/health",
    "/ready",
    "/",
    "/docs",
    "/openapi.json",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// Clients share the engine fairly.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// The key's name, or the peer's address where there are no keys.
    pub(crate) name: Arc<str>,
    /// Whether the name is a key's, and so one of few.
    pub(crate) has_key: bool,
    /// For the request's count.
    pub(crate) seen: Seen,
    /// When its head was there: the body may take a while.
    pub(crate) arrived: Instant,
}

/// 401 unless the request carries a key, where keys are configured. Leaves a [`Client`] with the request.
pub(crate) async fn check(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match admit(&app, &mut request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The same for any front.
pub(crate) fn admit(app: &App, request: &mut Request) -> Result<(), ApiError> {
    let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = header.and_then(|v| v.split_once(' '));
    let key = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    let path = request.uri().path();
    if path.starts_with("/admin/") {
        let is_admin = key.is_some_and(|key| app.keys.is_admin(key));
        return is_admin.then_some(()).ok_or_else(ApiError::not_admin);
    }
    let seen = request.extensions().get::<Seen>().cloned().unwrap_or_default();
    let arrived = Instant::now();
    let client = match key.and_then(|key| app.keys.name_of(key)) {
        Some(name) => {
            seen.has_key(&name);
            Client { name, has_key: true, seen, arrived }
        }
        None if app.keys.is_open() || OPEN.contains(&path) => {
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
            let name = peer.map(|peer| peer.ip().to_string()).unwrap_or_default();
            Client { name: name.into(), has_key: false, seen, arrived }
        }
        None => return Err(ApiError::unauthorized()),
    };
    request.extensions_mut().insert(client);
    Ok(())
}
