//! API keys: `Authorization: Bearer KEY`, compared in constant time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::App;
use super::error::ApiError;

/// Routes that a load balancer asks without a key.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// The keys that open the service; without any it is open to all.
#[derive(Default)]
pub(crate) struct Keys {
    clients: Vec<String>,
    /// Opens `/admin/…`, which is closed without it.
    admin: Option<String>,
}

impl Keys {
    /// From the file, else from `QRM_API_KEYS` (comma-separated). A configured source without a key is an error:
    /// an empty file must not open the service.
    pub(crate) fn load(file: Option<&Path>, admin: Option<&str>) -> anyhow::Result<Self> {
        anyhow::ensure!(admin != Some(""), "the admin key is empty");
        Ok(Self { clients: Self::clients(file)?, admin: admin.map(str::to_owned) })
    }

    fn clients(file: Option<&Path>) -> anyhow::Result<Vec<String>> {
        let (text, source) = match (file, std::env::var("QRM_API_KEYS")) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path);
                (text.with_context(|| format!("the key file {}", path.display()))?, "the key file")
            }
            (None, Ok(text)) => (text.replace(',', "\n"), "QRM_API_KEYS"),
            (None, Err(_)) => return Ok(Vec::new()),
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<_> = lines.map(str::to_owned).collect();
        anyhow::ensure!(!keys.is_empty(), "{source} holds no key");
        Ok(keys)
    }

    /// Compares with every key, so that the time tells neither which nor how much of it matched.
    fn accept(&self, key: &str) -> bool {
        let same = |known: &String| known.as_bytes().ct_eq(key.as_bytes());
        self.clients.iter().map(same).fold(Choice::from(0), |a, b| a | b).into()
    }

    fn is_admin(&self, key: &str) -> bool {
        self.admin.as_ref().is_some_and(|admin| admin.as_bytes().ct_eq(key.as_bytes()).into())
    }
}

/// Who asks: clients share the engine fairly. The API key, or the peer's address where there are no keys.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) Arc<str>);

/// 401 unless the request carries a key, where keys are configured. Leaves a [`Client`] with the request.
pub(crate) async fn check(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let key =
        header.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let key = key.map(|(_, key)| key.trim());
    if request.uri().path().starts_with("/admin/") {
        return match key.is_some_and(|key| app.keys.is_admin(key)) {
            true => next.run(request).await,
            false => ApiError::not_admin().into_response(),
        };
    }
    let key = key.filter(|key| app.keys.accept(key));
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.ip().to_string());
    let client = key.map(str::to_owned).or(peer).unwrap_or_default();
    let is_open = app.keys.clients.is_empty() || OPEN.contains(&request.uri().path());
    if !is_open && key.is_none() {
        return ApiError::unauthorized().into_response();
    }
    request.extensions_mut().insert(Client(client.into()));
    next.run(request).await
}
