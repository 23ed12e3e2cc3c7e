//! `GET /` and `/docs`: pages to look at. Each is one answer, and what it may load is this server's only.

use std::sync::LazyLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("../../page/style.css");

struct Page {
    html: String,
    /// No style and no script but the page's own, no request but to this server.
    policy: String,
}

static SCORES: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("../../page/index.html"), include_str!("../../page/app.js")));
static DOCS: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("../../page/docs.html"), include_str!("../../page/docs.js")));

pub(crate) async fn scores() -> Response {
    SCORES.response()
}

pub(crate) async fn docs() -> Response {
    DOCS.response()
}

impl Page {
    fn new(html: &str, script: &str) -> Self {
        let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
        Self {
            html: html.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", script),
            policy: format!(
                "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                hash(STYLE),
                hash(script)
            ),
        }
    }

    fn response(&'static self) -> Response {
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, &self.policy),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.html.as_str()).into_response()
    }
}
