//! Traces as a collector gets them: OTLP over gRPC, from a server under real requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::iter;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use qrm_proto::v1::input::Context;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::{Input, Response, ScoreRequest, ScoreStreamRequest};
use qrm_tests::{Rng, Server, fixture, until};
use serde_json::json;
use tonic::transport::Endpoint;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        self.0.lock().expect("no panic holds it").extend(scopes.flat_map(|scope| scope.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens until the runtime goes.
    fn start(&self, runtime: &tokio::runtime::Runtime) -> SocketAddr {
        let _within = runtime.enter();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = incoming.local_addr().expect("an address");
        let service = TraceServiceServer::new(self.clone());
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }

    /// The spans of a trace by name, once one of `name` is there.
    fn trace(&self, id: &str, name: &str) -> BTreeMap<String, Span> {
        let start = Instant::now();
        loop {
            let all = self.0.lock().expect("no panic holds it").clone();
            let of: BTreeMap<String, Span> = all
                .into_iter()
                .filter(|span| hex(&span.trace_id) == id)
                .map(|span| (span.name.clone(), span))
                .collect();
            if of.contains_key(name) {
                return of;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no {name} in {id}: {of:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const OURS: &str = "00f067aa0ba902b7";

fn context(trace: u8, sampled: bool) -> (String, String) {
    let id = format!("{trace:02x}").repeat(16);
    let header = format!("00-{id}-{OURS}-0{}", u8::from(sampled));
    (id, header)
}

#[test]
fn a_request_is_followed_into_its_batch() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.start(&runtime));
    let server = Server::start(&fixture("qwen2"), &["--otlp-endpoint", &endpoint]);
    let secret = "nobody may read this";

    // HTTP.
    let (http, header) = context(0xa1, true);
    let body = json!({"inputs": [{"prompt": secret, "response": secret}]}).to_string();
    let headers =
        [("content-type", "application/json"), ("traceparent", &header), ("x-request-id", "step-1")];
    assert_eq!(server.client().send("POST", "/v1/rewards", &headers, body.as_bytes()).status, 200);

    // gRPC.
    let (grpc, header) = context(0xb2, true);
    let text = || Response { content: Some(Content::Text(secret.into())) };
    let input =
        Input { context: Some(Context::Prompt(secret.into())), responses: vec![text()], ..Input::default() };
    let mut request = Request::new(ScoreRequest { options: None, inputs: vec![input] });
    request.metadata_mut().insert("traceparent", header.parse().expect("a value"));
    request.metadata_mut().insert("x-request-id", "step-2".parse().expect("a value"));
    let answer = runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{}", server.grpc())).expect("an address");
        RewardServiceClient::new(channel.connect().await.expect("connects")).score(request).await
    });
    assert_eq!(answer.expect("scores").metadata().get("x-request-id").expect("echoed"), "step-2");

    // A stream, whose work is done while its answer is written.
    let (stream, header) = context(0xd4, true);
    let prompt = Some(Context::Prompt(format!("{secret} either")));
    let input = Input { context: prompt, responses: vec![text()], ..Input::default() };
    let messages = [ScoreStreamRequest { options: None, input: Some(input) }];
    let mut request = Request::new(iter(messages));
    request.metadata_mut().insert("traceparent", header.parse().expect("a value"));
    request.metadata_mut().insert("x-request-id", "step-3".parse().expect("a value"));
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{}", server.grpc())).expect("an address");
        let mut client = RewardServiceClient::new(channel.connect().await.expect("connects"));
        let mut answers = client.score_stream(request).await.expect("a stream").into_inner();
        while answers.message().await.expect("no error").is_some() {}
    });

    for (trace, name, id) in [
        (&http, "POST /v1/rewards", "step-1"),
        (&grpc, "qrm.v1.RewardService/Score", "step-2"),
        (&stream, "qrm.v1.RewardService/ScoreStream", "step-3"),
    ] {
        let spans = collector.trace(trace, name);
        let request = &spans[name];
        assert_eq!(hex(&request.parent_span_id), OURS);
        for part in ["tokenize", "queue", "batch"] {
            let spans = collector.trace(trace, part);
            assert_eq!(spans[part].parent_span_id, request.span_id, "{part}");
        }
        let told = format!("{spans:?}");
        assert!(told.contains(id) && !told.contains("nobody"), "{told}");
    }
    let log = format!("{:?}", server.log());
    assert!(log.contains("step-1") && log.contains("step-2") && !log.contains("nobody"), "{log}");

    // Who says that it is not traced is not.
    let (quiet, header) = context(0xc3, false);
    let headers = [("content-type", "application/json"), ("traceparent", header.as_str())];
    server.client().send("POST", "/v1/rewards", &headers, body.as_bytes());
    // Requests that share a batch: it is linked to those whose trace it is not part of.
    until("a batch is linked to a request", || {
        std::thread::scope(|scope| {
            for i in 0..16 {
                let client = server.client();
                scope.spawn(move || client.rewards(&Rng::new(i).request(4)).ok());
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let spans = collector.0.lock().expect("no panic holds it").clone();
        let ids: Vec<&[u8]> = spans.iter().map(|span| &*span.span_id).collect();
        let links = spans.iter().filter(|span| span.name == "batch").flat_map(|span| &span.links);
        links.clone().any(|link| ids.contains(&&*link.span_id))
    });
    let spans = collector.0.lock().expect("no panic holds it").clone();
    assert!(spans.iter().all(|span| hex(&span.trace_id) != quiet));
    // The server's own work is nobody's trace.
    let parts = spans.iter().filter(|span| ["tokenize", "queue", "batch"].contains(&&*span.name));
    assert!(parts.clone().count() > 0 && parts.clone().all(|span| !span.parent_span_id.is_empty()));
    server.assert_quiet();
}

/// What the last requests were is sent before the process ends; a collector that is not there is no matter for clients.
#[test]
fn nothing_is_lost_at_the_end() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.start(&runtime));
    // Another protocol than gRPC is not spoken, which is said.
    let variables = [("QRM_OTLP_ENDPOINT", &*endpoint), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let mut server = Server::start_with(&fixture("qwen2"), &[], &variables);
    let (trace, header) = context(0xd4, true);
    let body = Rng::new(1).request(2).to_string();
    let headers = [("content-type", "application/json"), ("traceparent", header.as_str())];
    assert_eq!(server.client().send("POST", "/v1/rewards", &headers, body.as_bytes()).status, 200);
    server.terminate();
    assert!(server.wait(Duration::from_secs(30)).success());
    collector.trace(&trace, "POST /v1/rewards");
    assert!(
        server.log().iter().any(|line| line["fields"]["protocol"] == "http/protobuf"),
        "{:?}",
        server.log()
    );

    // A collector that is not there, named by either variable; a share of nothing.
    for variable in ["QRM_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "QRM_OTLP_SHARE"] {
        let value = if variable == "QRM_OTLP_SHARE" { "0.5" } else { "http://127.0.0.1:9" };
        let mut alone = Server::start_with(&fixture("qwen2"), &[], &[(variable, value)]);
        assert_eq!(alone.client().rewards(&Rng::new(1).request(2)).status, 200);
        alone.terminate();
        assert!(alone.wait(Duration::from_secs(60)).success());
    }
}
