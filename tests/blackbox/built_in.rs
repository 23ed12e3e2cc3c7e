//! Without `--model`: the built-in Q-RM, which knows a right number from a wrong one.

use qrm_tests::Server;
use serde_json::json;

/// Problems it was not trained on; each answer's wrong number with the right one at its place.
const QUESTION: &str =
    "Mia has 23 apples. Tom gives Mia 18 more. Mia sells 12 apples. How many apples does Mia have now?";
const RIGHT: &str = "23 + 18 = 41\n41 - 12 = 29\n#### 29";
const WRONG: [(&str, usize); 3] = [
    ("23 + 18 = 31\n31 - 12 = 19\n#### 19", 10), // the carry
    ("23 + 18 = 41\n41 + 12 = 53\n#### 53", 15), // the operator
    ("23 + 19 = 42\n42 - 12 = 30\n#### 30", 6),  // a number miscopied
];

#[test]
fn the_built_in_model_finds_the_wrong_number() {
    let mut server = Server::start_without_model(&[]);
    let message = "no --model was given";
    let said =
        |entry: &serde_json::Value| entry["fields"]["message"].as_str().is_some_and(|m| m.contains(message));
    assert!(server.log().iter().any(said), "it says what it is");
    let client = server.client();
    assert_eq!(client.get("/v1/models").ok()["data"][0]["id"], "arithmetic-qrm");
    let responses: Vec<&str> = [RIGHT].into_iter().chain(WRONG.map(|(text, _)| text)).collect();
    let request = json!({
        "inputs": [{"messages": [{"role": "user", "content": QUESTION}], "responses": responses}],
        "include": ["offsets"],
    });
    let answer = client.rewards(&request).ok();
    let reward_at = |index: usize, byte: usize| {
        let data = &answer["data"][index];
        let offsets = data["offsets"].as_array().expect("offsets");
        let token = offsets.iter().position(|o| o[1].as_u64() > Some(byte as u64)).expect("a token there");
        data["rewards"][token].as_f64().expect("a number")
    };
    for (i, (text, at)) in WRONG.into_iter().enumerate() {
        let (right, wrong) = (reward_at(0, at), reward_at(i + 1, at));
        assert!(wrong < right - 1.0, "{text}: {wrong} at byte {at}, and {right} of the right one");
        assert!((0..at).all(|byte| reward_at(i + 1, byte) > wrong), "{text}: {}", answer["data"][i + 1]);
        let score = |index: usize| answer["data"][index]["score"].as_f64().expect("a number");
        assert!(score(0) > score(i + 1), "{text}");
    }
    server.terminate();
    assert!(server.wait(std::time::Duration::from_secs(10)).success());
}
