//! Every fixture's f64 values, through the HTTP API, from ids and from text.

use qrm_tests::inputs::{VOCAB_FIXTURES, golden};
use qrm_tests::{Client, Server, doubles, fixture};
use serde_json::{Value, json};

fn close(what: &str, got: &Value, want: &Value) {
    let (got, want) = (doubles(got), doubles(want));
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(&want) {
        assert!((g - w).abs() <= f64::max(2e-4, 1e-4 * w.abs()), "{what}: {g}, not {w}");
    }
}

fn by_ids(cases: &[Value]) -> Value {
    let inputs: Vec<_> =
        cases.iter().map(|c| json!({"prompt": c["prompt_ids"], "response": c["response_ids"]})).collect();
    json!({ "inputs": inputs })
}

/// The text form gives the ids of the golden text, and the rewards that those ids give.
fn check_text(client: &Client, text: &Value) {
    let by_text = json!({
        "inputs": [{"messages": text["messages"], "response": text["response"]}],
        "include": ["token_ids"],
    });
    let answer = client.rewards(&by_text).ok();
    assert_eq!(answer["data"][0]["token_ids"], text["response_ids"]);
    let ids = by_ids(std::slice::from_ref(text));
    assert_eq!(answer["data"][0]["rewards"], client.rewards(&ids).ok()["data"][0]["rewards"]);
    assert_eq!(answer["usage"]["prompt_tokens"], text["prompt_ids"].as_array().expect("ids").len());
}

#[test]
fn vocabulary_heads() {
    for name in VOCAB_FIXTURES {
        let server = Server::start(&fixture(name), &[]);
        let (client, golden) = (server.client(), golden(name));
        let cases = golden["cases"].as_array().expect("cases");
        let mut request = by_ids(cases);
        request["include"] = json!(["logit", "logsumexp", "max", "entropy"]);
        let answer = client.rewards(&request).ok();
        assert_eq!(answer["reward"], "advantage");
        for (data, case) in answer["data"].as_array().expect("data").iter().zip(cases) {
            for field in ["logit", "logsumexp", "max", "entropy"] {
                close(&format!("{name} {field}"), &data[field], &case[field]);
            }
            close(&format!("{name} advantage"), &data["rewards"], &case["log_phi"]);
            assert!(doubles(&data["rewards"]).iter().all(|reward| *reward <= 0.0));
        }
        request["reward"] = json!("logit");
        let logits = client.rewards(&request).ok();
        request["reward"] = json!("centered_logit");
        let centered = client.rewards(&request).ok();
        for i in 0..cases.len() {
            assert_eq!(logits["data"][i]["rewards"], answer["data"][i]["logit"]);
            let row = &answer["data"][i];
            let want: Vec<_> =
                doubles(&row["logit"]).iter().zip(doubles(&row["max"])).map(|(z, m)| z - m).collect();
            close(name, &centered["data"][i]["rewards"], &json!(want));
        }
        check_text(&client, &golden["text"]);
        server.assert_quiet();
    }
}

#[test]
fn scalar_heads() {
    for (name, default) in
        [("qwen2-token-classification", "logit"), ("llama-sequence-classification", "outcome")]
    {
        let server = Server::start(&fixture(name), &[]);
        let (client, golden) = (server.client(), golden(name));
        let cases = golden["cases"].as_array().expect("cases");
        let mut request = by_ids(cases);
        assert_eq!(client.rewards(&request).ok()["reward"], default);
        for reward in ["logit", "outcome"] {
            request["reward"] = json!(reward);
            let answer = client.rewards(&request).ok();
            for (data, case) in answer["data"].as_array().expect("data").iter().zip(cases) {
                let mut want = case["score"].as_array().expect("scores").clone();
                if reward == "outcome" {
                    let last = want.len() - 1;
                    want[..last].fill(json!(0.0));
                }
                close(&format!("{name} {reward}"), &data["rewards"], &Value::Array(want));
            }
        }
        check_text(&client, &golden["text"]);
        server.assert_quiet();
    }
}
