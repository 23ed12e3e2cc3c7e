//! Traces over OTLP (gRPC), and the W3C trace context (`traceparent`) that requests bring.

use axum::http::HeaderMap;
use clap::Args;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::ClientTlsConfig;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Where traces go, and how many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Traces {
    /// Where traces go, OTLP over gRPC (`http://host:4317`, or `https`); default: `OTEL_EXPORTER_OTLP_ENDPOINT`, else nowhere.
    #[arg(id = "otlp_endpoint", long = "otlp-endpoint", env = "QRM_OTLP_ENDPOINT")]
    endpoint: Option<String>,
    /// Share of the requests that are traced, of those that do not say themselves (`traceparent`).
    #[arg(long = "otlp-share", env = "QRM_OTLP_SHARE", default_value_t = 1.0)]
    share: f64,
}

impl Traces {
    /// None: nowhere. An empty one is none, as OpenTelemetry has it.
    fn endpoint(&self) -> Option<String> {
        let given = self.endpoint.clone().filter(|url| !url.is_empty());
        given.or_else(|| std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok()).filter(|url| !url.is_empty())
    }
}

/// The protocol that the environment asks for, where that is not the one spoken here.
pub(super) fn protocol_unspoken() -> Option<String> {
    let asked = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let asked = asked.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    asked.filter(|protocol| protocol != "grpc")
}

/// Sends what is left when dropped.
pub(crate) struct Export {
    provider: SdkTracerProvider,
    /// Sending has a thread of its own.
    _runtime: Runtime,
}

impl Export {
    /// A tracer whose spans are sent, if they have somewhere to go.
    pub(super) fn start(traces: &Traces) -> anyhow::Result<Option<(Self, SdkTracer)>> {
        let Some(endpoint) = traces.endpoint() else { return Ok(None) };
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build()?;
        let within = runtime.enter();
        // Of an `https://` collector, whose certificate the machine's authorities vouch for.
        let tls = ClientTlsConfig::new().with_enabled_roots();
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_tls_config(tls).build()?;
        drop(within);
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(traces.share)));
        let resource = Resource::builder().with_service_name("qrm-server").build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        let provider = provider.with_sampler(sampler).with_resource(resource).build();
        let tracer = provider.tracer("qrm-server");
        Ok(Some((Self { provider, _runtime: runtime }, tracer)))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("traces were not sent to their end: {error}");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Whether a span goes anywhere.
pub(crate) fn is_sampled(span: &Span) -> bool {
    span.context().span().span_context().is_sampled()
}

/// Makes a span part of the trace that a request brings, if it brings one.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let context = TraceContextPropagator::new().extract(&Headers(headers));
        if let Err(error) = span.set_parent(context) {
            tracing::debug!("a request's trace is not gone on with: {error}");
        }
    }
}
