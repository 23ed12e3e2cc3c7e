//! The fronts: HTTP, and [`grpc`].
//!
//! - [`scoring`]: the way of every scoring request. [`dialects`]: what RL frameworks send.
//! - [`rewards`]: `POST /v1/rewards`. [`ndjson`]: its answer line by line.
//! - `tokenize`: `POST /tokenize`, `/detokenize`.
//! - `status`: `GET /health /ready /v1/models /info /metrics`.
//! - `admin`: `POST /admin/reload`.
//! - `page`: `GET /` and `/docs`. `openapi`: `GET /openapi.json`.
//! - [`error`]: every refusal in one shape.
//! - `json`: bodies in. `count`: of how many trajectories. [`intake`]: how much of them, how slowly. `off_thread`: large ones
//!   do not hold up the others.
//! - [`auth`]: who asks. `observe`: one log line, count and span per request, `ending`: at its end, [`seen`]: of what,
//!   [`request_id`]: by which name.
//! - `linger`: a refusal reaches the client.

mod admin;
pub(crate) mod auth;
mod count;
mod dialects;
mod ending;
pub(crate) mod error;
pub(crate) mod grpc;
#[cfg(test)]
mod hostile;
pub(crate) mod intake;
mod json;
mod linger;
mod ndjson;
pub(crate) mod observe;
pub(crate) mod off_thread;
mod openapi;
mod page;
pub(crate) mod request_id;
mod rewards;
mod scoring;
pub(crate) mod seen;
mod status;
mod tokenize;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;

use crate::engine::Limits;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::models::{Models, Served};
use crate::request::Invalid;
use dialects::{openrlhf, slime, trl, vllm};
use error::ApiError;
use intake::{Intake, Unread};
use off_thread::Turns;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) models: Models,
    pub(crate) metrics: Metrics,
    pub(crate) keys: Keys,
    pub(crate) limits: Limits,
    pub(crate) max_inputs: usize,
    pub(crate) intake: Arc<Intake>,
    pub(crate) turns: Turns,
    pub(crate) overload_status: StatusCode,
    pub(crate) default_timeout: Option<Duration>,
    /// Until a connection or stream on which nothing happens is closed.
    pub(crate) idle_timeout: Duration,
    /// Pages elsewhere whose scripts may call.
    pub(crate) cors: CorsLayer,
    /// New work is refused, and clients are sent elsewhere.
    pub(crate) leaving: AtomicBool,
}

impl App {
    /// Refuses new work from now on.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.models.close();
    }

    /// Whether it does.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The model of that name, or the first.
    pub(crate) fn served(&self, name: Option<&str>) -> Result<&Served, Invalid> {
        let name = name.unwrap_or_else(|| self.models.first_name());
        let found = self.models.find(name);
        found.ok_or_else(|| Invalid::not_found(format!("the model {name:?} is not served here")))
    }

    /// A body that was not read to its end, as a refusal.
    fn unread(&self, unread: Unread) -> ApiError {
        match unread {
            Unread::TooLarge => ApiError::body_too_large(self.intake.most_each()),
            Unread::Full => self.no_room(),
            Unread::Slow => ApiError::too_slow(),
            Unread::Broken => ApiError::not_json("the body cannot be read to its end"),
        }
    }

    /// Too much is being read and sent.
    fn no_room(&self) -> ApiError {
        self.metrics.refused.inc();
        ApiError::full("too much is being read and sent", self.retry_after(), self.overload_status)
    }

    /// When a request that is refused before its model is known may hope for a place.
    fn retry_after(&self) -> Duration {
        let all = self.models.iter().map(|served| served.current().engine.retry_after());
        all.max().unwrap_or_default()
    }
}

/// For clients that ask for it. An answer in lines is not for those who wait for more of it to compress.
fn compression() -> CompressionLayer<impl Predicate> {
    let is_worth_it = DefaultPredicate::new().and(NotForContentType::const_new(ndjson::NDJSON));
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(is_worth_it)
}

/// For scripts of pages from `origins`: `*`, or some of them; without any there is no such header.
pub(crate) fn cors(origins: &[String]) -> anyhow::Result<CorsLayer> {
    if origins.is_empty() {
        return Ok(CorsLayer::new());
    }
    let origin = |origin: &String| origin.parse().with_context(|| format!("--cors-origin {origin}"));
    let allowed = match origins {
        [all] if all == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().map(origin).collect::<anyhow::Result<Vec<_>>>()?),
    };
    let exposed = [RETRY_AFTER, rewards::PREFIX, request_id::REQUEST_ID];
    let methods = [Method::GET, Method::POST];
    let layer = CorsLayer::new().allow_origin(allowed).allow_methods(methods).expose_headers(exposed);
    Ok(layer.allow_headers([AUTHORIZATION, CONTENT_TYPE, ACCEPT]).max_age(Duration::from_secs(600)))
}

/// All routes with their layers.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/rewards", post(rewards::rewards))
        .route("/get_reward", post(openrlhf::get_reward))
        .route("/rm", post(slime::rm))
        .route("/classify", post(vllm::classify))
        .route("/pooling", post(vllm::pooling))
        .route("/get_sequence_logprobs/", post(trl::get_sequence_logprobs))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/admin/reload", post(admin::reload))
        .route("/", get(page::scores))
        .route("/docs", get(page::docs))
        .route("/openapi.json", get(openapi::json))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/info", get(status::info))
        .route("/v1/models", get(status::models))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        // A layer that does not know an encoding leaves it to `json`, which says so.
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(DefaultBodyLimit::disable()) // `json` has its own, with an error in our shape
        .layer(from_fn_with_state(app.clone(), auth::check))
        .layer(from_fn(linger::linger))
        .layer(compression())
        .layer(app.cors.clone())
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}
