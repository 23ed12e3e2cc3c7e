//! Answers line by line.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use qrm_tests::inputs::{POISON, poisoned};
use qrm_tests::{Client, Rng, Server, fixture, until};
use serde_json::{Value, json};

const NDJSON: [(&str, &str); 2] =
    [("content-type", "application/json"), ("accept", "text/html, application/x-ndjson;q=0.9")];

fn lines(client: &Client, request: &Value) -> Vec<Value> {
    let answer = client.send("POST", "/v1/rewards", &NDJSON, request.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    // One line alone is JSON and has been read as such.
    let text = answer.body.as_str().map(str::to_owned).unwrap_or_else(|| answer.body.to_string() + "\n");
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON in a line")).collect()
}

#[test]
fn the_lines_are_the_answer() {
    let server = Server::start(&fixture("qwen2"), &["--max-batch-tokens", "200"]);
    let client = server.client();
    let mut request = Rng::new(1).request(40);
    request["inputs"][7]["id"] = json!("seven");
    request["include"] = json!(["entropy", "token_ids"]);
    request["scale"] = json!(-2.5);
    let whole = client.rewards(&request).ok();
    let mut lines = lines(&client, &request);
    let mut closing = lines.pop().expect("a last line");
    lines.sort_by_key(|line| line["index"].as_u64());
    assert_eq!(json!(lines), whole["data"]);
    for field in ["object", "model", "model_version", "reward"] {
        assert_eq!(closing[field], whole[field]);
    }
    for field in ["count", "mean", "std"] {
        let (a, b) = (closing["stats"][field].as_f64(), whole["stats"][field].as_f64());
        assert!((a.expect("a number") - b.expect("a number")).abs() < 1e-9);
    }
    assert_eq!(closing["usage"].take()["response_tokens"], whole["usage"]["response_tokens"]);
    assert!(closing["data"].is_null());
    // What cannot be had in parts, and mistakes, are told before the first line.
    request["normalize"] = json!("std");
    let refused = client.send("POST", "/v1/rewards", &NDJSON, request.to_string().as_bytes());
    assert_eq!(refused.refused(422).1.as_deref(), Some("normalize"));
    client.send("POST", "/v1/rewards", &NDJSON, b"{}").refused(422);
    server.assert_quiet();
}

#[test]
fn lines_come_early_and_stop_with_the_client() {
    let server = Server::start(&fixture("qwen2"), &["--threads", "1", "--max-batch-tokens", "512"]);
    let client = server.client();
    let mut rng = Rng::new(2);
    let body = json!({"inputs": (0..400).map(|_| rng.input(100, 400)).collect::<Vec<_>>()}).to_string();
    let before = client.metric("qrm_computed_tokens_total");
    let mut stream = TcpStream::connect(server.address()).expect("connects");
    let head = "POST /v1/rewards HTTP/1.1\r\nhost: x\r\naccept: application/x-ndjson\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut read = BufReader::new(&stream).lines().map_while(Result::ok).filter(|line| line.starts_with('{'));
    let first: Value = serde_json::from_str(&read.next().expect("a line")).expect("JSON");
    assert_eq!(first["rewards"].as_array().map(Vec::len), Some(400));
    assert!(client.metric("qrm_queue_requests") > 0.0, "the first line came with the last");
    assert_eq!(client.metric(r#"qrm_requests_in_flight{route="/v1/rewards"}"#), 1.0, "it is at work");
    drop(read);
    drop(stream);
    until("nothing is left of a client that is gone", || {
        client.metric("qrm_queue_requests") == 0.0 && client.metric("qrm_request_bytes") == 0.0
    });
    assert_eq!(client.metric(r#"qrm_requests_in_flight{route="/v1/rewards"}"#), 0.0);
    let computed = client.metric("qrm_computed_tokens_total") - before;
    assert!(computed < 400.0 * 500.0 / 2.0, "{computed} tokens were computed for nobody");
    server.assert_quiet();
}

#[test]
fn an_error_under_way_is_the_last_line() {
    let directory = tempfile::tempdir().expect("a directory");
    poisoned("qwen2", directory.path());
    let flags = ["--threads", "1", "--max-batch-tokens", "100"];
    let server = Server::start(directory.path().to_str().expect("UTF-8"), &flags);
    let client = server.client();
    let request = |prompts: &[u32]| {
        let input = |p: &u32| json!({"prompt": [p], "response": [1, 2, 3]});
        json!({"inputs": prompts.iter().map(input).collect::<Vec<_>>()})
    };
    let poison = lines(&client, &request(&[1, 2, POISON]));
    assert_eq!(poison.last().expect("a line")["error"]["code"], "engine_failed");
    let mut late = json!({"inputs": (0..200).map(|i| json!({"prompt": [i], "response": vec![7; 500]})).collect::<Vec<_>>()});
    late["timeout_ms"] = json!(300);
    let late = lines(&client, &late);
    assert_eq!(late.last().expect("a line")["error"]["code"], "deadline_exceeded");
    assert!(late.len() < 200);
    assert_eq!(lines(&client, &request(&[5])).len(), 2);
    // Each counts as what it ended in.
    let metrics = client.get("/metrics").ok();
    for status in [500, 504, 200] {
        let series = format!(r#"route="/v1/rewards",status="{status}"}} 1"#);
        assert!(metrics.as_str().is_some_and(|text| text.contains(&series)), "{series}: {metrics}");
    }
}
