//! The reward models that the paper compares with, served: step-level ones, and policies against their reference.

use qrm_tests::{Rng, Server, copy, doubles, fixture};
use serde_json::{Value, json};

#[test]
fn a_policy_against_its_reference() {
    let [policy, reference] = ["qwen2", "qwen2-peaked"].map(fixture);
    let request = Rng::new(1).request(12);
    let log_phi = |model: &str| {
        let server = Server::start(model, &[]);
        rewards_of(&server.client().rewards(&request).ok())
    };
    let (ours, theirs) = (log_phi(&policy), log_phi(&reference));
    for (flags, beta) in [(&["--reference-beta", "0.5"][..], 0.5), (&[], 0.1)] {
        let server = Server::start(&policy, &[&["--reference-model", &reference][..], flags].concat());
        let client = server.client();
        let info = client.get("/info").ok();
        assert_eq!((&info["head"], &info["reward"]), (&json!("dpo"), &json!("dpo")));
        assert!(
            info["model_version"].as_str().expect("a version").contains('-'),
            "both checkpoints' content"
        );
        // The batch's forest is laid out once, for both.
        let answer = client.rewards(&request).ok();
        assert_eq!(answer["reward"], "dpo");
        for (got, (a, b)) in rewards_of(&answer).iter().zip(ours.iter().zip(&theirs)) {
            let want = beta * (a - b);
            assert!((got - want).abs() < 1e-4 + 1e-5 * want.abs(), "{got}, {want}");
        }
        // The policy itself is still a Q-RM.
        let mut own = request.clone();
        own["reward"] = json!("advantage");
        assert_eq!(rewards_of(&client.rewards(&own).ok()), ours);
        server.assert_quiet();
    }
}

fn rewards_of(answer: &Value) -> Vec<f64> {
    answer["data"].as_array().expect("data").iter().flat_map(|d| doubles(&d["rewards"])).collect()
}

/// A step-level model made of the scalar fixture.
fn step_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    copy("qwen2-token-classification", dir.path());
    let config = json!({"reward_model": "step", "activation": "tanh"});
    std::fs::write(dir.path().join("qrm_config.json"), config.to_string()).expect("written");
    dir
}

#[test]
fn steps_end_where_the_separator_or_the_client_says() {
    let dir = step_model();
    let server = Server::start(dir.path().to_str().expect("UTF-8"), &[]);
    let client = server.client();
    let response = "One and two.\nThree\nso 4";
    let base = json!({"prompt": "Say", "response": response});
    let ask = |input: &Value| client.rewards(&json!({"inputs": [input], "include": ["offsets", "logit"]}));
    let with = |field: &str, value: Value| {
        let mut input = base.clone();
        input[field] = value;
        input
    };
    let by_separator = ask(&base).ok();
    let datum = &by_separator["data"][0];
    let (rewards, logit) = (doubles(&datum["rewards"]), doubles(&datum["logit"]));
    // Lines end at bytes 13, 19 and 23: saying so is the same.
    assert_eq!(ask(&with("step_ends", json!([13, 19, 23]))).ok()["data"], by_separator["data"]);
    assert_eq!(rewards.iter().filter(|r| **r != 0.0).count(), 3);
    // Elsewhere: at the token that holds the step's last byte.
    let answer = ask(&with("step_ends", json!([4, 23]))).ok();
    let elsewhere = doubles(&answer["data"][0]["rewards"]);
    for (t, offset) in datum["offsets"].as_array().expect("offsets").iter().enumerate() {
        let (begin, end) = (offset[0].as_u64().expect("a byte"), offset[1].as_u64().expect("a byte"));
        let is_last = (begin < 4 && end >= 4) || end == 23;
        let want = if is_last { logit[t].tanh() } else { 0.0 };
        assert!((elsewhere[t] - want).abs() < 1e-6, "token {t}: {elsewhere:?}");
    }
    // Of ids they are tokens.
    let ids = json!({"prompt": [5, 6], "response": [7, 8, 9, 10], "step_ends": [1, 4]});
    let answer = client.rewards(&json!({"inputs": [ids]})).ok();
    let rewards = doubles(&answer["data"][0]["rewards"]);
    assert!(rewards[0] != 0.0 && rewards[1..3] == [0.0, 0.0] && rewards[3] != 0.0, "{rewards:?}");
    for (bad, at) in [(json!([0]), 0), (json!([5, 5]), 1), (json!([5, 24]), 1), (json!([9, 3]), 1)] {
        let (code, param) = ask(&with("step_ends", bad)).refused(422);
        assert_eq!((code.as_str(), param), ("out_of_range", Some(format!("inputs[0].step_ends[{at}]"))));
    }
    let mut other = json!({"inputs": [with("step_ends", json!([5]))], "reward": "outcome"});
    assert_eq!(client.rewards(&other).refused(422).0, "not_available");
    other = json!({"inputs": [{"prompt": "a", "responses": ["b"], "step_ends": [1]}]});
    assert_eq!(client.rewards(&other).refused(422).0, "conflicting_fields");
    server.assert_quiet();
}
