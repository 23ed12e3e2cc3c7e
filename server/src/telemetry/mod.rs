//! Logs, and [`otlp`]: traces. Never with prompt or response text.
//!
//! Logs go to stderr, filtered by `RUST_LOG`. Spans are of the target [`SPAN`] and only for traces: without an endpoint for them
//! nobody asks for them, and they cost nothing.

pub(crate) mod otlp;

use std::io::{IsTerminal, stderr};

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use otlp::{Export, Traces};

/// The target of spans.
pub(crate) const SPAN: &str = "qrm::trace";

/// Starts logs, and traces where they have somewhere to go. Called once, before anything else; what it gives is dropped last.
pub(crate) fn init(format: LogFormat, traces: Option<&Traces>) -> anyhow::Result<Option<Export>> {
    let registry = tracing_subscriber::registry();
    let Some((export, tracer)) = traces.map(Export::start).transpose()?.flatten() else {
        registry.with(logs(format)).init();
        return Ok(None);
    };
    let spans = Targets::new().with_target(SPAN, tracing::Level::INFO);
    let traces = tracing_opentelemetry::layer().with_tracer(tracer).with_filter(spans);
    registry.with(traces).with(logs(format)).init();
    if let Some(protocol) = otlp::protocol_unspoken() {
        tracing::warn!(protocol, "traces are sent over gRPC, the environment asks for another protocol");
    }
    Ok(Some(export))
}

fn logs<S: Subscriber + for<'a> LookupSpan<'a>>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let no_spans = filter.and(filter_fn(|metadata| metadata.target() != SPAN));
    let layer = fmt::layer().with_writer(stderr).with_target(false);
    match format {
        LogFormat::Text => layer.with_ansi(stderr().is_terminal()).with_filter(no_spans).boxed(),
        LogFormat::Json => {
            layer.json().with_current_span(false).with_span_list(false).with_filter(no_spans).boxed()
        }
    }
}
