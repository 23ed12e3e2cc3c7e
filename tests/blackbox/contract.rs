//! The answer's shape and what each option does.

use qrm_tests::{Rng, Server, doubles, fixture, floats, from_base64};
use serde_json::{Value, json};

/// What a load balancer hashes: alike for one prompt, the client's own where it sends one.
#[test]
fn answers_name_their_prompt() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let prefix = |prompt: &[u32], response: &[u32]| {
        client
            .rewards(&json!({"inputs": [{"prompt": prompt, "response": response}]}))
            .prefix
            .expect("a prefix")
    };
    let first = prefix(&[1, 2, 3], &[4]);
    assert_eq!(first, prefix(&[1, 2, 3], &[5, 6]));
    assert_ne!(first, prefix(&[1, 2], &[3, 4]));
    let body = json!({"inputs": [{"prompt": [1], "response": [2]}]}).to_string();
    let headers = [("content-type", "application/json"), ("x-qrm-prefix", "mine")];
    assert_eq!(client.send("POST", "/v1/rewards", &headers, body.as_bytes()).prefix.as_deref(), Some("mine"));
}

#[test]
fn a_group_computes_its_prompt_once_and_expands_in_order() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut rng = Rng::new(1);
    let prompt = rng.ids(100);
    // First tokens differ, so that nothing but the prompt is shared.
    let responses: Vec<Vec<u32>> = (0..8).map(|i| [vec![i], rng.ids(30)].concat()).collect();
    let group = json!({"id": "g", "prompt": prompt, "responses": responses});
    let lone = json!({"id": 7, "prompt": [5, 6], "response": [1, 2]});
    let answer = client.rewards(&json!({"inputs": [group, lone]})).ok();
    let data = answer["data"].as_array().expect("data");
    assert_eq!(data.len(), 9);
    for (i, row) in data.iter().enumerate() {
        assert_eq!(row["index"], i);
        assert_eq!(row["input"], usize::from(i == 8));
        assert_eq!(row["id"], if i == 8 { json!(7) } else { json!("g") });
    }
    let usage = &answer["usage"];
    assert_eq!(usage["computed_tokens"], 100 + 8 * 31 + 4);
    assert_eq!(usage["prompt_tokens"], 8 * 100 + 2);
    assert_eq!(usage["response_tokens"], 8 * 31 + 2);
    assert_eq!(usage["cached_tokens"], 7 * 100);
    for (i, response) in responses.iter().enumerate() {
        let single = client.rewards(&json!({"inputs": [{"prompt": prompt, "response": response}]})).ok();
        assert_eq!(single["data"][0]["rewards"], data[i]["rewards"]);
    }
    for timing in ["tokenize_ms", "queue_ms", "compute_ms"] {
        assert!(answer["timing"][timing].as_f64() >= Some(0.0), "{answer}");
    }
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("qwen2")));
}

#[test]
fn options_do_what_they_say() {
    let server = Server::start(&fixture("qwen2"), &["--served-model-name", "judge"]);
    let client = server.client();
    let mut rng = Rng::new(2);
    let mut request = json!({"inputs": [rng.input(20, 30), rng.input(10, 5)], "model": "judge"});
    let plain = client.rewards(&request).ok();
    let all: Vec<f64> =
        [doubles(&plain["data"][0]["rewards"]), doubles(&plain["data"][1]["rewards"])].concat();
    let mean = all.iter().sum::<f64>() / 35.0;
    let std = (all.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 35.0).sqrt();
    assert_eq!(plain["stats"]["count"], 35);
    assert!((plain["stats"]["mean"].as_f64().expect("mean") - mean).abs() < 1e-6);
    assert!((plain["stats"]["std"].as_f64().expect("std") - std).abs() < 1e-6);

    for (normalize, shift) in [("std", 0.0), ("standard", mean)] {
        request["normalize"] = json!(normalize);
        request["scale"] = json!(-2.5);
        let answer = client.rewards(&request).ok();
        for (got, raw) in doubles(&answer["data"][0]["rewards"]).iter().zip(&all) {
            assert!((got - -2.5 * (raw - shift) / std).abs() < 1e-5);
        }
    }
    request["normalize"] = json!("none");
    request["scale"] = json!(1.0);
    request["encoding_format"] = json!("base64");
    let encoded = client.rewards(&request).ok();
    assert_eq!(from_base64(&encoded["data"][1]["rewards"]), floats(&plain["data"][1]["rewards"]));

    // Rewards are finite whatever they are multiplied by, also what is made of them.
    let spans = json!({"inputs": [{"prompt": "a", "response": "bcd", "spans": [[0, 3]]}], "scale": 3e38});
    for request in [json!({"inputs": request["inputs"], "scale": -3e38}), spans] {
        let row = client.rewards(&request).ok()["data"][0].clone();
        assert!(row["score"].is_number() && row["sum"].is_number(), "{row}");
        assert!(row["rewards"].as_array().expect("a list").iter().all(Value::is_number), "{row}");
    }
}

#[test]
fn text_forms() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let response = "First, 44 + 5 = 49 péns 🙂.";
    let request = json!({
        "inputs": [{"prompt": "<|im_start|>user\nHi<|im_end|>\n", "response": response}],
        "include": ["token_ids", "tokens", "offsets"],
        "append_eos": true,
    });
    let answer = client.rewards(&request).ok();
    let row = &answer["data"][0];
    let ids: Vec<u32> = serde_json::from_value(row["token_ids"].clone()).expect("ids");
    let offsets: Vec<[usize; 2]> = serde_json::from_value(row["offsets"].clone()).expect("offsets");
    assert_eq!(ids.last(), Some(&2), "the end-of-sequence token");
    assert_eq!(row["tokens"][ids.len() - 1], "<|im_end|>");
    assert_eq!((ids.len(), row["length"].as_u64()), (offsets.len(), Some(ids.len() as u64)));
    let covered: Vec<u8> = offsets.iter().flat_map(|[a, b]| response.as_bytes()[*a..*b].to_vec()).collect();
    assert_eq!(covered, response.as_bytes());
    // Special tokens in a prompt are recognised: <|im_start|> is one token.
    let tokens = client.post("/tokenize", &json!({"prompt": "<|im_start|>user\nHi<|im_end|>\n"})).ok();
    assert_eq!(tokens["tokens"][0], 1);
    assert_eq!(answer["usage"]["prompt_tokens"], tokens["count"]);
    let back = client.post("/detokenize", &json!({"tokens": ids})).ok();
    assert_eq!(back["prompt"], format!("{response}<|im_end|>"));
    // Of an answer that ends at once, that is what there is to judge.
    let at_once =
        json!({"inputs": [{"prompt": "Hi", "response": ""}], "append_eos": true, "include": ["token_ids"]});
    assert_eq!(client.rewards(&at_once).ok()["data"][0]["token_ids"], json!([2]));
    let skipped = client.post("/detokenize", &json!({"tokens": ids, "skip_special_tokens": true})).ok();
    assert_eq!(skipped["prompt"], response);
}

#[test]
fn truncation_drops_the_prompt_from_the_left() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut rng = Rng::new(4);
    let (prompt, response) = (rng.ids(600), rng.ids(100));
    let request = |prompt: &[u32], truncate: bool| json!({"inputs": [{"prompt": prompt, "response": response}], "truncate_prompt": truncate});
    let (code, param) = client.rewards(&request(&prompt, false)).refused(422);
    assert_eq!((code.as_str(), param.as_deref()), ("context_length_exceeded", Some("inputs[0].response")));
    let truncated = client.rewards(&request(&prompt, true)).ok();
    let by_hand = client.rewards(&request(&prompt[600 - 412..], false)).ok();
    assert_eq!(truncated["data"], by_hand["data"]);
    assert_eq!(truncated["usage"]["prompt_tokens"], 412);
    client
        .rewards(&json!({"inputs": [{"prompt": [1], "response": rng.ids(512)}], "truncate_prompt": true}))
        .refused(422);
    // A text that cannot fit is not even tokenised, unless it may be cut.
    let text = "four words make five. ".repeat(20_000);
    let request =
        |truncate| json!({"inputs": [{"prompt": text, "response": "no"}], "truncate_prompt": truncate});
    let (code, param) = client.rewards(&request(false)).refused(422);
    assert_eq!((code.as_str(), param.as_deref()), ("context_length_exceeded", Some("inputs[0].prompt")));
    let answer = client.rewards(&request(true)).ok();
    assert_eq!(
        answer["usage"]["prompt_tokens"].as_u64().expect("a number"),
        512 - answer["data"][0]["length"].as_u64().expect("a number")
    );
    // Within bounds; and nowhere else is a text read that is longer than any that is scored.
    let endless = "four words make five. ".repeat(50_000);
    let request = json!({"inputs": [{"prompt": endless, "response": "no"}], "truncate_prompt": true});
    assert_eq!(client.rewards(&request).refused(422).0, "context_length_exceeded");
    assert_eq!(
        client.post("/tokenize", &json!({"prompt": endless})).refused(422).0,
        "context_length_exceeded"
    );
    let many = client.post("/detokenize", &json!({"tokens": vec![1; 5000]}));
    assert_eq!(many.refused(422), ("context_length_exceeded".into(), Some("tokens".into())));
}

/// Of one long prompt many shorter ones are made: they count before there are more of them than a queue takes.
#[test]
fn truncated_prompts_count_before_they_are_all_made() {
    let server = Server::start(&fixture("qwen2"), &["--max-queue-tokens", "100000"]);
    let client = server.client();
    let request = |responses: usize| {
        let responses: Vec<_> = (0..responses).map(|n| vec![1; 1 + n % 400]).collect();
        json!({"inputs": [{"prompt": vec![1; 600], "responses": responses}], "truncate_prompt": true})
    };
    let (code, param) = client.rewards(&request(400)).refused(413);
    assert_eq!((code.as_str(), param.as_deref()), ("request_too_large", Some("inputs")));
    assert_eq!(client.rewards(&request(190)).ok()["data"].as_array().map(Vec::len), Some(190));
}

#[test]
fn what_the_server_says_of_itself() {
    let server = Server::start(&fixture("llama-tied"), &["--max-inputs", "17"]);
    let client = server.client();
    assert_eq!(client.get("/health").ok()["status"], "ok");
    assert_eq!(client.get("/ready").ok()["status"], "ready");
    assert_eq!(client.get("/v1/models").ok()["data"][0]["id"], "llama-tied");
    let info = client.get("/info").ok();
    assert_eq!((&info["head"], &info["reward"]), (&json!("q_vocab"), &json!("advantage")));
    assert_eq!((&info["vocab_size"], &info["context_length"]), (&json!(509), &json!(512)));
    assert_eq!(info["limits"]["max_inputs"], 17);
    client.rewards(&Rng::new(5).request(3)).ok();
    let metrics = client.get("/metrics").ok();
    let text = metrics.as_str().expect("text");
    assert!(text.contains(r#"qrm_requests_total{dialect="native",key="",model="llama-tied",route="/v1/rewards",status="200"} 1"#), "{text}");
    assert_eq!(client.metric("qrm_queue_requests"), 0.0);
    assert_eq!(client.metric("qrm_queue_tokens"), 0.0);
    assert!(client.metric("qrm_computed_tokens_total") > 3.0);
    for histogram in ["tokenize", "queue", "compute", "request"] {
        assert!(text.contains(&format!("# TYPE qrm_{histogram}_seconds histogram")), "{histogram}");
    }
}
