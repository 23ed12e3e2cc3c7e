//! Prometheus metrics: what the service did and what waits.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Seconds, from a millisecond to ten minutes.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];
/// Tokens of a batch.
const TOKENS: [f64; 12] =
    [16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 65_536.0];

/// Every metric of the process.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// `qrm_requests_total{route, status}`
    pub(crate) requests: IntCounterVec,
    /// `qrm_request_seconds{route}`
    pub(crate) request_seconds: HistogramVec,
    /// `qrm_key_requests_total{key}`: by the key's name.
    pub(crate) key_requests: IntCounterVec,
    /// `qrm_key_tokens_total{key}`: of trajectories that were read.
    pub(crate) key_tokens: IntCounterVec,
    /// `qrm_tasks`
    pub(crate) tasks: IntGauge,
    /// `qrm_request_bytes`
    pub(crate) request_bytes: IntGauge,
    /// `qrm_queue_requests`
    pub(crate) queue_requests: IntGauge,
    /// `qrm_queue_tokens`
    pub(crate) queue_tokens: IntGauge,
    /// `qrm_queue_refused_total`
    pub(crate) refused: IntCounter,
    /// `qrm_batch_fill`: what a batch costs, of what it may.
    pub(crate) batch_fill: Histogram,
    /// `qrm_batch_tokens`: unique tokens of a batch.
    pub(crate) batch_tokens: Histogram,
    /// `qrm_computed_tokens_total`
    pub(crate) computed_tokens: IntCounter,
    /// `qrm_shared_tokens_total`
    pub(crate) shared_tokens: IntCounter,
    /// `qrm_prefix_cache_hit_tokens_total`
    pub(crate) prefix_cache_hits: IntCounter,
    /// `qrm_prefix_cache_evicted_tokens_total`
    pub(crate) prefix_cache_evicted: IntCounter,
    /// `qrm_prefix_cache_bytes`
    pub(crate) prefix_cache_bytes: IntGauge,
    /// `qrm_joined_tokens_total`
    pub(crate) joined_tokens: IntCounter,
    /// `qrm_failed_batches_total`
    pub(crate) failed_batches: IntCounter,
    /// `qrm_failed_trajectories_total`
    pub(crate) failed_trajectories: IntCounter,
    /// `qrm_worker_restarts_total`
    pub(crate) worker_restarts: IntCounter,
    /// `qrm_tokenize_seconds`
    pub(crate) tokenize_seconds: Histogram,
    /// `qrm_queue_seconds`
    pub(crate) queue_seconds: Histogram,
    /// `qrm_compute_seconds`: of one batch.
    pub(crate) compute_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let request_seconds = HistogramVec::new(
            HistogramOpts::new("qrm_request_seconds", "From a request's head to its answer.")
                .buckets(SECONDS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(request_seconds.clone()))?;
        Ok(Self {
            requests: counters("qrm_requests_total", "Requests answered.", &["route", "status"])?,
            request_seconds,
            key_requests: counters(
                "qrm_key_requests_total",
                "Requests, by the name of their key.",
                &["key"],
            )?,
            key_tokens: counters("qrm_key_tokens_total", "Tokens read, by the name of their key.", &["key"])?,
            tasks: gauge("qrm_tasks", "Tasks of the server: open connections and what serves them.")?,
            request_bytes: gauge("qrm_request_bytes", "Bodies of requests that are not yet answered.")?,
            queue_requests: gauge("qrm_queue_requests", "Requests with trajectories not yet in a batch.")?,
            queue_tokens: gauge("qrm_queue_tokens", "Tokens of trajectories not yet in a batch.")?,
            refused: counter("qrm_queue_refused_total", "Requests refused because the queue was full.")?,
            batch_fill: histogram(
                "qrm_batch_fill",
                "What a batch costs, of what it may; above 1 is a trajectory too costly to have company.",
                &[0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0],
            )?,
            batch_tokens: histogram("qrm_batch_tokens", "Unique tokens of a batch.", &TOKENS)?,
            computed_tokens: counter("qrm_computed_tokens_total", "Tokens the decoder ran.")?,
            shared_tokens: counter(
                "qrm_shared_tokens_total",
                "Tokens that another trajectory's run served.",
            )?,
            prefix_cache_hits: counter(
                "qrm_prefix_cache_hit_tokens_total",
                "Tokens of shared prefixes that an earlier batch had computed.",
            )?,
            prefix_cache_evicted: counter(
                "qrm_prefix_cache_evicted_tokens_total",
                "Tokens dropped from the prefix cache for newer ones.",
            )?,
            prefix_cache_bytes: gauge("qrm_prefix_cache_bytes", "Keys and values in the prefix cache.")?,
            joined_tokens: counter(
                "qrm_joined_tokens_total",
                "Tokens of trajectories that were being computed already when their turn came.",
            )?,
            failed_batches: counter("qrm_failed_batches_total", "Batches that failed and were halved.")?,
            failed_trajectories: counter(
                "qrm_failed_trajectories_total",
                "Trajectories that the engine failed on.",
            )?,
            worker_restarts: counter("qrm_worker_restarts_total", "Times a worker was started again.")?,
            tokenize_seconds: histogram(
                "qrm_tokenize_seconds",
                "Tokenising and validating a request.",
                &SECONDS,
            )?,
            queue_seconds: histogram("qrm_queue_seconds", "From acceptance to the first batch.", &SECONDS)?,
            compute_seconds: histogram("qrm_compute_seconds", "Computing a batch.", &SECONDS)?,
            registry,
        })
    }

    /// The text exposition format.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}
