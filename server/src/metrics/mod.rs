//! Prometheus metrics: what the service did and what waits; [`drift`]: what the rewards are like.

pub(crate) mod drift;

use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use qrm_model::RewardModel;
use qrm_model::reward::HeadKind;

use crate::api::seen::Seen;
use drift::{Drift, Drifts};

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
    drifts: Drifts,
    /// `qrm_requests_total{route, dialect, model, status, key}`
    requests: IntCounterVec,
    /// `qrm_request_seconds{route, dialect}`
    request_seconds: HistogramVec,
    /// `qrm_requests_in_flight{route}`
    in_flight: IntGaugeVec,
    /// `qrm_model_info{model, version, architecture, head}`
    model_info: IntGaugeVec,
    /// `qrm_reloads_total{model, result}`
    reloads: IntCounterVec,
    /// `qrm_ready`
    pub(crate) ready: IntGauge,
    /// `qrm_worker_alive{model}`
    worker_alive: IntGaugeVec,
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
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help)?);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, Histogram::with_opts(options)?)
        };
        Ok(Self {
            drifts: Drifts::register(&registry)?,
            requests: counters(
                "qrm_requests_total",
                "Requests that have ended; status 499 or Cancelled: their clients went first.",
                &["route", "dialect", "model", "status", "key"],
            )?,
            request_seconds: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("qrm_request_seconds", "From a request's head to its end.")
                        .buckets(SECONDS.to_vec()),
                    &["route", "dialect"],
                )?,
            )?,
            in_flight: gauges("qrm_requests_in_flight", "Requests that have not ended.", &["route"])?,
            model_info: gauges(
                "qrm_model_info",
                "1 for each checkpoint that is served.",
                &["model", "version", "architecture", "head"],
            )?,
            reloads: counters("qrm_reloads_total", "Reloads of a checkpoint.", &["model", "result"])?,
            ready: gauge("qrm_ready", "1 while requests are taken.")?,
            worker_alive: gauges("qrm_worker_alive", "1 while a model's worker lives.", &["model"])?,
            key_tokens: counters("qrm_key_tokens_total", "Tokens read, by the name of their key.", &["key"])?,
            tasks: gauge("qrm_tasks", "Tasks of the server: open connections and what serves them.")?,
            request_bytes: gauge(
                "qrm_request_bytes",
                "Bodies of requests until they are answered, and answers until they are taken.",
            )?,
            queue_requests: gauge("qrm_queue_requests", "Requests with trajectories not yet in a batch.")?,
            queue_tokens: gauge("qrm_queue_tokens", "Tokens of trajectories not yet in a batch.")?,
            refused: counter("qrm_queue_refused_total", "Requests refused for want of room.")?,
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

    /// Counts a request that begins; [`InFlight::end`] counts its end.
    pub(crate) fn begin(&self, route: &str) -> InFlight {
        let gauge = self.in_flight.with_label_values(&[route]);
        gauge.inc();
        InFlight { gauge, metrics: self.clone(), start: Instant::now() }
    }

    /// A checkpoint that is served from now on, in the place of another or of none.
    pub(crate) fn serves(&self, model: &str, new: &RewardModel, old: Option<&RewardModel>) {
        let labels =
            |m: &RewardModel| [model, m.version(), m.architecture(), m.head().as_str()].map(str::to_owned);
        if let Some(old) = old {
            let _ = self.model_info.remove_label_values(&labels(old).each_ref().map(String::as_str));
        }
        self.model_info.with_label_values(&labels(new)).set(1);
        for is_done in [true, false] {
            self.reloads_of(model, is_done); // there, at 0, before the first
        }
    }

    /// Counts a reload.
    pub(crate) fn reloaded(&self, model: &str, is_done: bool) {
        self.reloads_of(model, is_done).inc();
    }

    fn reloads_of(&self, model: &str, is_done: bool) -> IntCounter {
        self.reloads.with_label_values(&[model, if is_done { "done" } else { "failed" }])
    }

    /// Whether a model's worker lives.
    pub(crate) fn worker(&self, model: &str, is_alive: bool) {
        self.worker_alive.with_label_values(&[model]).set(i64::from(is_alive));
    }

    /// What a model's rewards are like.
    pub(crate) fn drift(&self, model: &str, head: HeadKind) -> Drift {
        self.drifts.of(model, head)
    }

    /// The text exposition format.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}

/// The metric, which is part of what is told from now on.
fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// A request under way.
pub(crate) struct InFlight {
    gauge: IntGauge,
    metrics: Metrics,
    start: Instant,
}

impl InFlight {
    /// Counts it as ended. Gives how long it took.
    pub(crate) fn end(self, route: &str, seen: &Seen, status: &str) -> Duration {
        let time = self.start.elapsed();
        let dialect = dialect(route);
        let labels = [route, dialect, seen.model(), status, seen.key()];
        self.metrics.requests.with_label_values(&labels).inc();
        self.metrics.request_seconds.with_label_values(&[route, dialect]).observe(time.as_secs_f64());
        time
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Whose way of asking a route is; empty for those that score nothing.
fn dialect(route: &str) -> &'static str {
    match route {
        "/v1/rewards" => "native",
        "/get_reward" => "openrlhf",
        "/rm" => "slime",
        "/classify" | "/pooling" => "vllm",
        "/get_sequence_logprobs/" => "trl",
        "/qrm.v1.RewardService/Score" | "/qrm.v1.RewardService/ScoreStream" => "grpc",
        _ => "",
    }
}
