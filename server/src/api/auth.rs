//! API keys: `Authorization: Bearer KEY`, compared in constant time.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Request, State};
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
pub(crate) struct Keys(Vec<String>);

impl Keys {
    /// From the file, else from `QRM_API_KEYS` (comma-separated). A configured source without a key is an error:
    /// an empty file must not open the service.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let (text, source) = match (file, std::env::var("QRM_API_KEYS")) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path);
                (text.with_context(|| format!("the key file {}", path.display()))?, "the key file")
            }
            (None, Ok(text)) => (text.replace(',', "\n"), "QRM_API_KEYS"),
            (None, Err(_)) => return Ok(Self::default()),
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<_> = lines.map(str::to_owned).collect();
        anyhow::ensure!(!keys.is_empty(), "{source} holds no key");
        Ok(Self(keys))
    }

    /// Compares with every key, so that the time tells neither which nor how much of it matched.
    fn accept(&self, key: &str) -> bool {
        let same = |known: &String| known.as_bytes().ct_eq(key.as_bytes());
        self.0.iter().map(same).fold(Choice::from(0), |a, b| a | b).into()
    }
}

/// 401 unless the request carries a key, where keys are configured.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.keys.0.is_empty() || OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let key =
        header.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match key.is_some_and(|(_, key)| app.keys.accept(key.trim())) {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}
