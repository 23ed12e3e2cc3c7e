//! Proposition 3.2 on every token: `0 ≤ logsumexp − max ≤ entropy ≤ log V`, and rewards that are finite and, as
//! advantages, never above zero.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use qrm_tests::inputs::VOCABULARY;
use qrm_tests::{Client, Server, doubles, fixture};
use serde_json::{Value, json};

fn hold(client: &Client, prompt: &[u32], response: &[u32]) -> Result<(), TestCaseError> {
    let include = ["logit", "logsumexp", "max", "entropy"];
    let request = json!({"inputs": [{"prompt": prompt, "response": response}], "include": include});
    let answer = client.rewards(&request).ok();
    let data = &answer["data"][0];
    let column = |name: &str| doubles(&data[name]);
    let (rewards, logit) = (column("rewards"), column("logit"));
    let (logsumexp, max, entropy) = (column("logsumexp"), column("max"), column("entropy"));
    prop_assert_eq!(rewards.len(), response.len());
    for t in 0..rewards.len() {
        // f32 cannot place logsumexp − max closer than its own spacing at that height.
        let rounding = 1e-4 + 2.4e-7 * max[t].abs();
        let gap = logsumexp[t] - max[t];
        prop_assert!(0.0 <= gap && gap <= entropy[t] + rounding, "gap {} entropy {}", gap, entropy[t]);
        prop_assert!(entropy[t] <= f64::from(VOCABULARY).ln() + 1e-4);
        prop_assert!(rewards[t] <= 0.0 && logit[t] <= max[t]);
    }
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    prop_assert!((data["score"].as_f64().unwrap_or(f64::NAN) - mean).abs() < 1e-4 * (1.0 + mean.abs()));
    prop_assert_eq!(&data["length"], &Value::from(response.len()));
    Ok(())
}

#[test]
fn hold_on_every_token() {
    let ids = |most| prop::collection::vec(0..VOCABULARY, 1..most);
    for name in ["qwen2", "qwen2-peaked"] {
        let server = Server::start(&fixture(name), &[]);
        let client = server.client();
        let config = ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() };
        let cases = TestRunner::new(config)
            .run(&(ids(60), ids(80)), |(prompt, response)| hold(&client, &prompt, &response));
        cases.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
