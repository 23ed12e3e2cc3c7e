//! Trajectories as they come, answers as they are ready.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{iter, repeat_with};
use qrm_proto::v1::input::Context;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::{Input, Options, ScoreStreamRequest};
use qrm_tests::{Rng, Server, fixture, floats, raw, until};
use serde_json::json;
use tonic::Code;
use tonic::transport::Endpoint;

use super::{connect, input, inputs, read, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_every_input() {
    let server = Server::start(&fixture("qwen2"), &["--max-queue-tokens", "8000"]);
    let (http, mut client) = (server.client(), connect(&server).await);
    let request = Rng::new(5).request(1000);
    let mut over_http = Vec::new();
    for inputs in request["inputs"].as_array().expect("inputs").chunks(100) {
        over_http
            .extend(http.rewards(&json!({"inputs": inputs})).ok()["data"].as_array().cloned().expect("data"));
    }
    let mut messages: Vec<_> = inputs(&request)
        .into_iter()
        .map(|input| ScoreStreamRequest { options: None, input: Some(input) })
        .collect();
    messages[500].input.as_mut().expect("an input").responses.clear();
    messages[500].input.as_mut().expect("an input").id = "bad".into();
    let options = Options { include: vec!["token_ids".into()], ..Options::default() };
    messages.insert(0, ScoreStreamRequest { options: Some(options), input: None });
    let answers = client.score_stream(iter(messages)).await.expect("a stream").into_inner();
    let (mut data, errors, summary, end) = read(answers).await;
    end.expect("a good end");
    data.sort_by_key(|trajectory| trajectory.input);
    assert_eq!(data.len(), 999);
    for trajectory in &data {
        let datum = &over_http[trajectory.input as usize];
        assert_eq!(trajectory.rewards, floats(&datum["rewards"]), "of input {}", trajectory.input);
        assert_eq!(trajectory.token_ids.len(), trajectory.rewards.len());
    }
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((error.input, error.id.as_str(), error.code.as_str()), (500, "bad", "response_empty"));
    assert_eq!(error.status, Code::InvalidArgument as i32);
    let summary = summary.expect("a summary");
    let tokens: usize = data.iter().map(|t| t.rewards.len()).sum();
    let stats = summary.stats.expect("stats");
    assert_eq!(stats.count as usize, tokens);
    let mean = data.iter().flat_map(|t| &t.rewards).map(|r| f64::from(*r)).sum::<f64>() / tokens as f64;
    assert!((stats.mean - mean).abs() < 1e-9 * mean.abs());
    // Its inputs waited for a place in the queue, which is no refusal.
    assert_eq!(http.metric("qrm_queue_refused_total"), 0.0);
    // What a stream cannot do it says at once.
    let options = Options { normalize: "std".into(), ..Options::default() };
    let first = ScoreStreamRequest { options: Some(options), input: None };
    let answers = client.score_stream(iter([first])).await.expect("a stream").into_inner();
    assert_eq!(read(answers).await.3.expect_err("no").code(), Code::InvalidArgument);
    // Each counts as what it ended in.
    let metrics = http.get("/metrics").ok();
    for status in ["Ok", "InvalidArgument"] {
        let series = format!(r#"route="/qrm.v1.RewardService/ScoreStream",status="{status}"}} 1"#);
        assert!(metrics.as_str().is_some_and(|text| text.contains(&series)), "{series}: {metrics}");
    }
    server.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_told_when_too_much_is_being_read() {
    let limits = ["--max-body-bytes", "200000", "--max-request-bytes", "200000"];
    let server = Server::start(&fixture("qwen2"), &limits);
    // Half of a body over HTTP holds most of what there is.
    let mut half = raw::connect(server.address());
    write!(half, "{}{}", raw::head(199_000), " ".repeat(150_000)).expect("sent");
    server.client().until("qrm_request_bytes", |held| held >= 150_000.0);
    let input =
        Input { id: "x".repeat(100_000), context: Some(Context::Prompt("2".into())), ..Input::default() };
    let message = ScoreStreamRequest { options: None, input: Some(input) };
    let answers = connect(&server).await.score_stream(iter([message])).await.expect("a stream");
    let refused = read(answers.into_inner()).await.3.expect_err("too much");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    server.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_cancelled_half_way() {
    let server = Server::start(&fixture("qwen2"), &["--threads", "1"]);
    let mut client = connect(&server).await;
    let mut rng = Rng::new(6);
    let messages: Vec<_> = (0..1000)
        .map(|_| ScoreStreamRequest { options: None, input: Some(input(&rng.input(300, 200))) })
        .collect();
    let mut answers = client.score_stream(iter(messages)).await.expect("a stream").into_inner();
    for _ in 0..50 {
        answers.message().await.expect("no error").expect("an answer");
    }
    drop(answers);
    let http = server.client();
    until("nothing is left of a client that is gone", || {
        http.metric("qrm_queue_tokens") + http.metric("qrm_request_bytes") == 0.0
    });
    let gone = r#"route="/qrm.v1.RewardService/ScoreStream",status="Cancelled"} 1"#;
    assert!(http.get("/metrics").ok().as_str().is_some_and(|text| text.contains(gone)), "it is counted");
    let computed = http.metric("qrm_computed_tokens_total");
    assert!(computed < 1000.0 * 500.0 / 2.0, "{computed} tokens were computed for nobody");
    server.assert_quiet();
}

/// What waits for its turn in a stream whose answers are not taken does not keep the turn from the others.
#[tokio::test(flavor = "multi_thread")]
async fn texts_of_a_stream_that_is_not_read_hold_up_nobody() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).expect("an address");
    let channel = endpoint.initial_stream_window_size(64).connect().await.expect("connects");
    let messages = (0..500).map(|i| {
        let input = Input {
            context: Some(Context::Prompt(format!("{i} and two? ").repeat(8))),
            responses: vec![text(" Two.")],
            ..Input::default()
        };
        ScoreStreamRequest { options: None, input: Some(input) }
    });
    let endless = iter(messages).chain(futures_util::stream::pending());
    let _unread = RewardServiceClient::new(channel).score_stream(endless).await.expect("a stream");
    let http = server.client();
    http.until("qrm_tokenize_seconds_count", |read| read > 0.0);
    for _ in 0..20 {
        let request = json!({"inputs": [{"prompt": "Two?", "response": " 2"}], "timeout_ms": 20_000});
        http.rewards(&request).ok();
    }
    http.until("qrm_tokenize_seconds_count", |read| read >= 520.0);
    server.assert_quiet();
}

/// The server reads no more than it can have at work while nobody reads its answers; in the end it lets go.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_not_read_from() {
    let server = Server::start(&fixture("qwen2"), &["--stall-timeout", "3"]);
    let mut client = connect(&server).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (count, mut rng) = (sent.clone(), Rng::new(7));
    let endless = repeat_with(move || {
        count.fetch_add(1, Ordering::Relaxed);
        ScoreStreamRequest { options: None, input: Some(input(&rng.input(2, 30))) }
    });
    // Without a pause between messages nothing else would get a turn.
    let endless = endless.then(|message| async {
        tokio::task::yield_now().await;
        message
    });
    let answers = client.score_stream(endless).await.expect("a stream").into_inner();
    until("the server reads no more", || {
        let before = sent.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(400));
        before > 1000 && sent.load(Ordering::Relaxed) == before
    });
    server.client().until("qrm_request_bytes", |held| held == 0.0);
    let end = read(answers).await.3;
    assert!(end.is_err(), "the stream was cut, not ended");
    server.assert_quiet();
}
