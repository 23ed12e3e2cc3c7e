//! Every row of the error table, 200 requests each, made from valid ones: the right status and field, and a server
//! that is well afterwards.

use qrm_tests::inputs::{POISON, VOCABULARY, poisoned};
use qrm_tests::{Client, Rng, Server, fixture};
use serde_json::{Value, json};

const CASES: usize = 200;
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn healthy(server: &Server) {
    let client = server.client();
    client.get("/ready").ok();
    client.rewards(&Rng::new(1).request(2)).ok();
    server.assert_quiet();
    // A line for the start, one for listening, one per request.
    assert!(server.log().iter().all(|l| l["fields"]["message"].as_str().is_some_and(|m| m.len() < 40)));
}

/// Sends `CASES` broken requests; each must be refused with `status`, and `expected` says the field at fault.
fn each(
    client: &Client,
    seed: u64,
    status: u16,
    mut broken: impl FnMut(&mut Rng) -> (Value, Option<String>),
) {
    let mut rng = Rng::new(seed);
    for _ in 0..CASES {
        let (request, expected) = broken(&mut rng);
        let (_, param) = client.rewards(&request).refused(status);
        assert_eq!(param, expected, "{request}");
    }
}

/// A valid request and the place of one of its inputs.
fn valid(rng: &mut Rng) -> (Value, usize) {
    let n = 1 + rng.below(5);
    (rng.request(n), rng.below(n))
}

#[test]
fn bodies_that_are_not_json() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut rng = Rng::new(11);
    let mut sent = 0;
    while sent < CASES {
        let mut body = valid(&mut rng).0.to_string().into_bytes();
        match rng.below(3) {
            0 => body.truncate(rng.below(body.len())),
            1 => body.insert(rng.below(body.len() + 1), rng.pick(b"}]@\xff")),
            _ => body.extend(b" {}"),
        }
        // A bracket within a string leaves it JSON.
        if serde_json::from_slice::<Value>(&body).is_ok() {
            continue;
        }
        sent += 1;
        assert_eq!(client.send("POST", "/v1/rewards", &JSON, &body).refused(400).0, "not_json");
    }
    for _ in 0..CASES {
        let body = valid(&mut rng).0.to_string();
        let types = ["text/plain", "application/x-www-form-urlencoded", "", "json", "application/jsonx"];
        let headers = [("content-type", rng.pick(&types))];
        let headers = if rng.below(5) == 0 { &headers[..0] } else { &headers };
        client.send("POST", "/v1/rewards", headers, body.as_bytes()).refused(415);
    }
    healthy(&server);
}

#[test]
fn routes_methods_and_models() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut rng = Rng::new(12);
    for i in 0..CASES {
        let path = format!(
            "/{}{i}",
            rng.pick(&["v1/reward", "rewards/", "v2/rewards", "%00", "..%2f", "tokenize/"])
        );
        client.send(rng.pick(&["GET", "POST"]), &path, &JSON, b"{}").refused(404);
        let (path, methods) = rng.pick(&[
            ("/v1/rewards", ["GET", "PUT", "DELETE"]),
            ("/metrics", ["POST", "PATCH", "DELETE"]),
            ("/tokenize", ["GET", "PUT", "PATCH"]),
        ]);
        client.send(rng.pick(&methods), path, &JSON, b"{}").refused(405);
    }
    each(&client, 13, 404, |rng| {
        let mut request = valid(rng).0;
        request["model"] = json!(rng.pick(&["", "qwen", "qwen2 ", "QWEN2", "../qwen2"]));
        (request, Some("model".into()))
    });
    client.post("/tokenize", &json!({"model": "other", "prompt": "x"})).refused(404);
    healthy(&server);
}

#[test]
fn keys() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys");
    std::fs::write(&file, "# of the team\n\nfirst-key\nsecond-key\n").expect("written");
    let server = Server::start(&fixture("qwen2"), &["--api-key-file", file.to_str().expect("UTF-8")]);
    let client = server.client();
    let mut rng = Rng::new(14);
    let body = rng.request(1).to_string();
    for _ in 0..CASES {
        let wrong = rng.pick(&[
            "Bearer",
            "Bearer ",
            "first-key",
            "Bearer first-ke",
            "Bearer # of the team",
            "Basic first-key",
        ]);
        let path = rng.pick(&["/v1/rewards", "/tokenize", "/metrics", "/info", "/nowhere"]);
        client.send("POST", path, &[JSON[0], ("authorization", wrong)], body.as_bytes()).refused(401);
        client.send("GET", path, &[], &[]).refused(401);
    }
    for key in ["Bearer first-key", "bearer second-key"] {
        client.send("POST", "/v1/rewards", &[JSON[0], ("authorization", key)], body.as_bytes()).ok();
    }
    client.get("/health").ok();
    client.get("/ready").ok();
    server.assert_quiet();
}

#[test]
fn bodies_that_are_too_large() {
    let server = Server::start(&fixture("qwen2"), &["--max-body-bytes", "20000", "--max-inputs", "16"]);
    let client = server.client();
    let mut rng = Rng::new(15);
    for _ in 0..CASES {
        let mut request = valid(&mut rng).0;
        request["inputs"][0]["id"] = json!("x".repeat(20_000 + rng.below(50_000)));
        assert_eq!(client.rewards(&request).refused(413).0, "body_too_large");
    }
    each(&client, 16, 413, |rng| {
        let n = 17 + rng.below(10);
        let inputs = match rng.below(2) {
            0 => vec![rng.input(2, 1); n],
            _ => vec![json!({"prompt": [1], "responses": vec![[2]; n]})],
        };
        (json!({ "inputs": inputs }), Some("inputs".into()))
    });
    healthy(&server);
}

#[test]
fn prompts_and_responses() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    // Empty responses.
    each(&client, 21, 422, |rng| {
        let (mut request, at) = valid(rng);
        let empty = if rng.below(2) == 0 { json!([]) } else { json!("") };
        if rng.below(2) == 0 {
            request["inputs"][at]["response"] = empty;
            return (request, Some(format!("inputs[{at}].response")));
        }
        let place = rng.below(3);
        let mut responses = vec![json!([3, 4]); 3];
        responses[place] = empty;
        request["inputs"][at] = json!({"prompt": [1, 2], "responses": responses});
        (request, Some(format!("inputs[{at}].responses[{place}]")))
    });
    // Token ids outside the vocabulary.
    each(&client, 22, 422, |rng| {
        let (mut request, at) = valid(rng);
        let field = rng.pick(&["prompt", "response"]);
        let mut ids = rng.ids(5);
        ids[rng.below(5)] = VOCABULARY + rng.below(1 << 31) as u32;
        request["inputs"][at][field] = json!(ids);
        (request, Some(format!("inputs[{at}].{field}")))
    });
    // Numbers that are no token ids.
    each(&client, 23, 422, |rng| {
        let (mut request, at) = valid(rng);
        let field = rng.pick(&["prompt", "response"]);
        let place = rng.below(4);
        let mut ids = vec![json!(1); 4];
        ids[place] =
            rng.pick(&[json!(-1), json!(1.5), json!("a"), json!(null), json!(1u64 << 32), json!([])]).clone();
        request["inputs"][at][field] = json!(ids);
        (request, Some(format!("inputs[{at}].{field}[{place}]")))
    });
    // Trajectories longer than the context.
    each(&client, 24, 422, |rng| {
        let (mut request, at) = valid(rng);
        let response = 1 + rng.below(600);
        let prompt = 513usize.saturating_sub(response).max(1) + rng.below(50);
        request["inputs"][at] = rng.input(prompt, response);
        (request, Some(format!("inputs[{at}].response")))
    });
    healthy(&server);
}

#[test]
fn names() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    // Of fields.
    each(&client, 25, 422, |rng| {
        let (mut request, at) = valid(rng);
        let name = rng.pick(&["prmopt", "Response", "temperature", "n", "rewards"]);
        match rng.below(3) {
            0 => {
                request["inputs"][at][name] = json!(1);
                (request, Some(format!("inputs[{at}].{name}")))
            }
            1 => {
                request["inputs"][at] =
                    json!({"messages": [{"role": "user", "content": "x", name: 1}], "response": "y"});
                (request, Some(format!("inputs[{at}].messages[0].{name}")))
            }
            _ => {
                request[name] = json!(1);
                (request, Some(name.into()))
            }
        }
    });
    // Of rewards, and those this checkpoint cannot give.
    each(&client, 26, 422, |rng| {
        let mut request = valid(rng).0;
        request["reward"] = json!(rng.pick(&["advantages", "", "Logit", "outcome", "step", "dpo"]));
        (request, Some("reward".into()))
    });
    healthy(&server);
}

#[test]
fn spans() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    // With a gap, an overlap, an end elsewhere.
    each(&client, 27, 422, |rng| {
        let (mut request, at) = valid(rng);
        let text = json!({"prompt": [1], "response": "seven"});
        request["inputs"][at] = text;
        let (spans, place) = rng.pick(&[
            (json!([[1, 5]]), "[0]"),
            (json!([[0, 2], [3, 5]]), "[1]"),
            (json!([[0, 3], [2, 5]]), "[1]"),
            (json!([[0, 3], [3, 6]]), "[1]"),
            (json!([[0, 3]]), "[0]"),
            (json!([]), "[0]"),
            (json!([[0, 5, 6]]), "[0]"),
            (json!([[0, -5]]), "[0][1]"),
        ]);
        request["inputs"][at]["spans"] = spans;
        (request, Some(format!("inputs[{at}].spans{place}")))
    });
    // Of token ids.
    each(&client, 32, 422, |rng| {
        let (mut request, at) = valid(rng);
        request["inputs"][at]["spans"] = json!([[0, 4]]);
        (request, Some(format!("inputs[{at}].spans")))
    });
    healthy(&server);
}

#[test]
fn options() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    // Of the wrong type or value.
    each(&client, 28, 422, |rng| {
        let mut request = valid(rng).0;
        let (field, value) = rng
            .pick(&[
                ("scale", json!("1")),
                ("scale", json!(1e300)),
                ("normalize", json!("mean")),
                ("span_reduce", json!("max")),
                ("append_eos", json!(1)),
                ("truncate_prompt", json!("yes")),
                ("encoding_format", json!("hex")),
                ("priority", json!(1.5)),
                ("timeout_ms", json!(0)),
                ("timeout_ms", json!(-5)),
                ("model", json!(3)),
            ])
            .clone();
        request[field] = value;
        (request, Some(field.into()))
    });
    // Columns that there are not.
    each(&client, 29, 422, |rng| {
        let mut request = valid(rng).0;
        let place = rng.below(3);
        let mut include = vec!["logit"; 3];
        include[place] = rng.pick(&["logits", "", "offsets", "Entropy"]);
        request["include"] = json!(include);
        (request, Some(format!("include[{place}]")))
    });
    healthy(&server);
}

#[test]
fn inputs() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    // With too much or too little in them.
    each(&client, 30, 422, |rng| {
        let (mut request, at) = valid(rng);
        let (input, field) = rng
            .pick(&[
                (json!({"response": [1]}), ".prompt"),
                (json!({"prompt": [1]}), ".response"),
                (json!({"prompt": [], "response": [1]}), ".prompt"),
                (json!({"prompt": "", "response": [1]}), ".prompt"),
                (json!({"prompt": [1], "responses": []}), ".responses"),
                (json!({"prompt": [1], "response": [1], "responses": [[1]]}), ".responses"),
                (json!({"prompt": [1], "messages": [], "response": [1]}), ".messages"),
                (json!({"prompt": [1], "response": [1], "id": [1]}), ".id"),
                (json!({"prompt": [1], "responses": ["a"], "spans": [[0, 1]]}), ".spans"),
                (json!({"messages": [{"role": "user"}], "response": [1]}), ".messages[0].content"),
                (json!({"prompt": {"text": "x"}, "response": [1]}), ".prompt"),
                (json!([]), ""),
                (json!("text"), ""),
            ])
            .clone();
        request["inputs"][at] = input;
        (request, Some(format!("inputs[{at}]{field}")))
    });
    // None, in three ways.
    for body in [json!({}), json!({"inputs": []}), json!({"inputs": 1})] {
        assert_eq!(client.rewards(&body).refused(422).1.as_deref(), Some("inputs"));
    }
    healthy(&server);
}

#[test]
fn a_scalar_head_has_no_vocabulary() {
    let server = Server::start(&fixture("qwen2-token-classification"), &[]);
    let client = server.client();
    each(&client, 31, 422, |rng| {
        let mut request = valid(rng).0;
        if rng.below(2) == 0 {
            request["reward"] = json!(rng.pick(&["advantage", "centered_logit", "step", "dpo"]));
            return (request, Some("reward".into()));
        }
        request["include"] = json!([rng.pick(&["logsumexp", "max", "entropy"])]);
        (request, Some("include[0]".into()))
    });
    // Its own position is enough: a scalar head needs no prompt.
    client.rewards(&json!({"inputs": [{"prompt": [], "response": [1, 2]}]})).ok();
    healthy(&server);
}

#[test]
fn a_trajectory_that_fails_fails_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    poisoned("qwen2", directory.path());
    let server = Server::start(directory.path().to_str().expect("UTF-8"), &[]);
    let client = server.client();
    // In one batch with others or not, it alone fails.
    std::thread::scope(|scope| {
        for sender in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    let token = if sender == 3 { POISON } else { 5 };
                    let answer = client
                        .rewards(&json!({"inputs": [{"prompt": [1, token, sender], "response": [4, 5]}]}));
                    match sender {
                        3 => assert_eq!(answer.refused(500).0, "engine_failed"),
                        _ => assert_eq!(answer.ok()["data"][0]["rewards"].as_array().map(Vec::len), Some(2)),
                    }
                }
            });
        }
    });
    assert_eq!(client.metric("qrm_failed_trajectories_total"), 20.0);
    assert_eq!(client.metric("qrm_worker_restarts_total"), 0.0);
    client.get("/ready").ok();
}
