//! Calls of one message and one answer.

use std::io::Write;
use std::time::{Duration, Instant};

use futures_util::stream::iter;
use prost::Message as _;
use qrm_proto::v1::input::Context;
use qrm_proto::v1::{
    Input, Messages, Options, Range, ScoreRequest, ScoreStreamRequest, TokenizeRequest, Trajectory,
    tokenize_request,
};
use qrm_tests::{Rng, Server, fixture, floats};
use serde_json::{Value, json};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Status};

use super::{connect, ids, input, inputs, read, text};

fn same(trajectory: &Trajectory, datum: &Value) {
    assert_eq!(trajectory.index, datum["index"].as_u64().expect("an index") as u32);
    assert_eq!(trajectory.rewards, floats(&datum["rewards"]));
    assert_eq!(f64::from(trajectory.score) as f32, datum["score"].as_f64().expect("a score") as f32);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rewards_as_over_http() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let (http, mut client) = (server.client(), connect(&server).await);
    let mut rng = Rng::new(1);
    let mut request = rng.request(20);
    let group: Vec<_> = (0..4).map(|_| rng.ids(9)).collect();
    request["inputs"].as_array_mut().expect("inputs").push(json!({"prompt": rng.ids(7), "responses": group}));
    request["include"] = json!(["token_ids", "tokens", "logit", "logsumexp", "max", "entropy"]);
    request["scale"] = json!(0.5);
    request["normalize"] = json!("standard");
    let over_http = http.rewards(&request).ok();
    let options = Options {
        scale: Some(0.5),
        normalize: "standard".into(),
        include: ["token_ids", "tokens", "logit", "logsumexp", "max", "entropy"].map(String::from).to_vec(),
        ..Options::default()
    };
    let score = ScoreRequest { options: Some(options), inputs: inputs(&request) };
    // Compressed and not.
    for mut client in [
        client.clone(),
        client
            .clone()
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip),
    ] {
        let answer = client.score(score.clone()).await.expect("scores").into_inner();
        let data = over_http["data"].as_array().expect("data");
        assert_eq!(answer.data.len(), data.len());
        for (trajectory, datum) in answer.data.iter().zip(data) {
            same(trajectory, datum);
            assert_eq!(trajectory.entropy, floats(&datum["entropy"]));
            assert_eq!(trajectory.logsumexp, floats(&datum["logsumexp"]));
            assert_eq!(trajectory.max, floats(&datum["max"]));
            assert_eq!(trajectory.logit, floats(&datum["logit"]));
            assert_eq!(trajectory.token_ids, ids(&datum["token_ids"]).ids);
            assert_eq!(json!(trajectory.tokens), datum["tokens"]);
        }
        let summary = answer.summary.expect("a summary");
        assert_eq!(summary.model_version, over_http["model_version"]);
        assert_eq!(json!(summary.stats.expect("stats").mean), over_http["stats"]["mean"]);
        assert_eq!(
            json!(summary.usage.expect("usage").response_tokens),
            over_http["usage"]["response_tokens"]
        );
    }
    // Text, a conversation, spans.
    let turns = vec![qrm_proto::v1::Message { role: "user".into(), content: "How many?".into() }];
    let inputs = vec![
        Input {
            id: "a".into(),
            context: Some(Context::Prompt("2 + 2 =".into())),
            responses: vec![text(" four"), text(" 4")],
            ..Input::default()
        },
        Input {
            context: Some(Context::Messages(Messages { messages: turns })),
            responses: vec![text("eleven")],
            spans: vec![Range { begin: 0, end: 2 }, Range { begin: 2, end: 6 }],
            ..Input::default()
        },
    ];
    let over_http = http.rewards(&json!({"include": ["offsets"], "inputs": [
        {"id": "a", "prompt": "2 + 2 =", "responses": [" four", " 4"]},
        {"messages": [{"role": "user", "content": "How many?"}], "response": "eleven", "spans": [[0, 2], [2, 6]]},
    ]}));
    let over_http = over_http.ok();
    let options = Options { include: vec!["offsets".into()], ..Options::default() };
    let answer =
        client.score(ScoreRequest { options: Some(options), inputs }).await.expect("scores").into_inner();
    for (trajectory, datum) in answer.data.iter().zip(over_http["data"].as_array().expect("data")) {
        same(trajectory, datum);
        assert_eq!(trajectory.id, datum["id"].as_str().unwrap_or_default());
        let offsets: Vec<_> = trajectory.offsets.iter().map(|r| json!([r.begin, r.end])).collect();
        assert_eq!(json!(offsets), datum["offsets"]);
    }
    assert_eq!(answer.data[2].rewards.len(), 2);
    // The rest of the service.
    let info = client.info(qrm_proto::v1::InfoRequest {}).await.expect("info").into_inner();
    assert_eq!((info.models[0].name.as_str(), info.models[0].head.as_str()), ("qwen2", "q_vocab"));
    let content = Some(tokenize_request::Content::Prompt("2 + 2".into()));
    let tokens = client.tokenize(TokenizeRequest { content, ..Default::default() }).await.expect("tokens");
    let over_http = http.post("/tokenize", &json!({"prompt": "2 + 2"})).ok();
    assert_eq!(json!(tokens.into_inner().tokens), over_http["tokens"]);
    server.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), "alice secret").expect("written");
    let path = keys.path().to_str().expect("UTF-8");
    let limits = ["--max-queue-tokens", "60000", "--max-body-bytes", "200000"];
    let flags = [&["--api-key-file", path, "--threads", "1"][..], &limits].concat();
    let server = Server::start(&fixture("qwen2"), &flags);
    let mut client = connect(&server).await;
    let mut rng = Rng::new(2);
    let with_key = |score: ScoreRequest| {
        let mut request = Request::new(score);
        request.metadata_mut().insert("authorization", "Bearer secret".parse().expect("ASCII"));
        request
    };
    let of = |inputs| ScoreRequest { options: None, inputs };
    let good = of(vec![input(&rng.input(4, 4))]);
    client.score(with_key(good.clone())).await.expect("scores");
    let code = |status: &Status| {
        let detail = status.metadata().get("qrm-code").and_then(|v| v.to_str().ok());
        (status.code(), detail.unwrap_or_default().to_owned())
    };
    // No key, a wrong one.
    let refused = client.score(good.clone()).await.expect_err("no key");
    assert_eq!(code(&refused), (Code::Unauthenticated, "invalid_api_key".into()));
    let mut wrong = Request::new(good.clone());
    wrong.metadata_mut().insert("authorization", "Bearer secre".parse().expect("ASCII"));
    assert_eq!(client.score(wrong).await.expect_err("a wrong key").code(), Code::Unauthenticated);
    // Mistakes, with the field.
    let mut bad = good.clone();
    bad.inputs.push(Input { responses: vec![], ..good.inputs[0].clone() });
    let refused = client.score(with_key(bad)).await.expect_err("no response");
    assert_eq!(code(&refused), (Code::InvalidArgument, "response_empty".into()));
    assert_eq!(refused.metadata().get("qrm-param").expect("a field"), "inputs[1].responses");
    let other = Options { model: "other".into(), ..Options::default() };
    let bad = ScoreRequest { options: Some(other), ..good.clone() };
    assert_eq!(client.score(with_key(bad)).await.expect_err("no model").code(), Code::NotFound);
    let refused = client.score(with_key(of(vec![]))).await.expect_err("no inputs");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let large = of((0..1500).map(|_| input(&rng.input(300, 200))).collect());
    let refused = client.score(with_key(large)).await.expect_err("a large body");
    assert_eq!(code(&refused), (Code::InvalidArgument, "body_too_large".into()));
    let many = of(vec![Input::default(); 70_000]);
    let refused = client.score(with_key(many)).await.expect_err("many inputs");
    assert_eq!(code(&refused), (Code::InvalidArgument, "request_too_large".into()));
    // Too much, and too late.
    let mut many = || of((0..50).map(|_| input(&rng.input(300, 200))).collect());
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let (mut client, request) = (client.clone(), with_key(many()));
            tokio::spawn(async move { client.score(request).await })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call.await.expect("no panic") {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(code(&status), (Code::ResourceExhausted, "queue_full".into()));
                assert!(status.metadata().get("retry-after").is_some());
                refused += 1;
            }
        }
    }
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    let mut late = with_key(many());
    late.set_timeout(Duration::from_millis(2));
    let code = client.score(late).await.expect_err("too late").code();
    // Whoever looks at the clock first.
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    let metrics = server.client().with_key("secret").get("/metrics").ok();
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("dialect=\"grpc\",key=\"alice\",model=\"qwen2\""), "{metrics}");
    assert!(metrics.contains("qrm_key_tokens_total{key=\"alice\"}"), "{metrics}");
    assert!(
        metrics.contains("route=\"/qrm.v1.RewardService/Score\",status=\"ResourceExhausted\""),
        "{metrics}"
    );
    assert!(!metrics.contains("secret"));
    server.assert_quiet();
}

/// A call whose message is these bytes, flagged as compressed or not: its status, and what the server calls that.
async fn by_hand(
    server: &Server,
    method: &str,
    header: (&str, &str),
    flag: u8,
    message: &[u8],
) -> (Code, Option<String>) {
    let frame = [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat();
    let stream = tokio::net::TcpStream::connect(server.grpc()).await.expect("connects");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/qrm.v1.RewardService/{method}", server.grpc()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(header.0, header.1);
    let mut client = client.ready().await.expect("ready");
    let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
    body.send_data(frame.into(), true).expect("sent");
    let answer = answer.await.expect("an answer");
    let text = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let status = text("grpc-status").and_then(|status| status.parse::<i32>().ok()).expect("a refusal");
    (Code::from_i32(status), text("qrm-code"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_the_servers_too() {
    let server = Server::start(&fixture("qwen2"), &["--threads", "1"]);
    let mut rng = Rng::new(4);
    let inputs = (0..1500).map(|_| input(&rng.input(300, 200))).collect();
    let message = ScoreRequest { options: None, inputs }.encode_to_vec();
    let start = Instant::now();
    let (status, _) = by_hand(&server, "Score", ("grpc-timeout", "400m"), 0, &message).await;
    assert_eq!(status, Code::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(server.client().metric("qrm_queue_tokens"), 0.0);
}

/// Nobody else's time is wasted by another try.
#[tokio::test(flavor = "multi_thread")]
async fn a_senders_mistake_is_not_the_servers() {
    let server = Server::start(&fixture("qwen2"), &["--max-body-bytes", "100000"]);
    let none = ("x-none", "");
    for method in ["Score", "Tokenize"] {
        let (status, _) = by_hand(&server, method, none, 0, &[0x12, 9, 1]).await;
        assert_eq!(status, Code::InvalidArgument, "{method}: bytes that are no message");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[0; 200_000]).expect("packed");
        let packed = packed.finish().expect("packed");
        let (status, code) = by_hand(&server, method, ("grpc-encoding", "gzip"), 1, &packed).await;
        assert_eq!((status, code.as_deref()), (Code::InvalidArgument, Some("body_too_large")), "{method}");
    }
    let long = Input { id: "x".repeat(200_000), ..Input::default() };
    let message = ScoreStreamRequest { options: None, input: Some(long) };
    let answers = connect(&server).await.score_stream(iter([message])).await.expect("a stream");
    let refused = read(answers.into_inner()).await.3.expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert_eq!(server.client().metric("qrm_request_bytes"), 0.0);
    server.assert_quiet();
}
