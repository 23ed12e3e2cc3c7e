//! What RL frameworks send, word for word, and the numbers that the native route gives for the same.

use qrm_tests::{Client, Server, fixture, floats, from_base64};
use serde_json::{Value, json};

const PROMPT: &str = "<|im_start|>user\nSay 3.<|im_end|>\n<|im_start|>assistant\n";
const RESPONSE: &str = "It is 3 🙂.<|im_end|>";

fn native(client: &Client, input: Value) -> Value {
    client.rewards(&json!({"inputs": [input], "include": ["tokens", "token_ids"]})).ok()["data"][0].clone()
}

#[test]
fn openrlhf() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let query = format!("{PROMPT}{RESPONSE}");
    let answer =
        client.post("/get_reward", &json!({"query": [query], "prompts": [PROMPT], "labels": ["3"]})).ok();
    let expected = native(&client, json!({"prompt": PROMPT, "response": RESPONSE}));
    assert_eq!(answer["rewards"], json!([expected["score"]]));
    assert_eq!(answer["scores"], answer["rewards"]);
    assert_eq!(answer["token_rewards"], json!([expected["rewards"]]));
    assert_eq!(answer["extra_logs"]["response_tokens"], json!([expected["length"]]));
    // The second URL of two gets nothing to do.
    let nothing = client.post("/get_reward", &json!({"query": [], "prompts": [], "labels": []})).ok();
    assert_eq!((&nothing["rewards"], &nothing["scores"]), (&json!([]), &json!([])));
    for (body, param) in [
        (json!({"query": ["abc"], "prompts": ["b"]}), "query[0]"),
        (json!({"query": ["abc", "ab"], "prompts": ["a", "ab"]}), "query[1]"),
        (json!({"query": ["abc"], "prompts": []}), "prompts"),
        (json!({"query": ["abc"]}), "prompts"),
        (json!({"query": "abc", "prompts": ["a"]}), "query"),
    ] {
        assert_eq!(client.post("/get_reward", &body).refused(422).1.as_deref(), Some(param));
    }
    server.assert_quiet();
}

#[test]
fn an_outcome_model_gives_its_one_number() {
    let server = Server::start(&fixture("llama-sequence-classification"), &[]);
    let client = server.client();
    let query = format!("{PROMPT}{RESPONSE}");
    let expected = native(&client, json!({"prompt": PROMPT, "response": RESPONSE}));
    let reward = client.post("/get_reward", &json!({"query": [query], "prompts": [PROMPT]})).ok();
    assert_eq!(reward["rewards"][0], expected["sum"]);
    let class = json!({"input": query, "use_activation": false, "add_special_tokens": false});
    let class = client.post("/classify", &class).ok();
    assert_eq!(class["data"][0]["probs"], json!([expected["sum"]]));
    server.assert_quiet();
}

#[test]
fn slime() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let text = client.post("/rm", &json!({"prompt": PROMPT, "response": RESPONSE, "label": "3"})).ok();
    let expected = native(&client, json!({"prompt": PROMPT, "response": RESPONSE}));
    assert_eq!(text["score"], expected["score"]);
    assert_eq!((&text["token_rewards"], &text["tokens"]), (&expected["rewards"], &expected["tokens"]));
    let messages = json!([{"role": "user", "content": "Say 3.", "name": "a"}]);
    let chat =
        client.post("/rm", &json!({"prompt": messages, "response": RESPONSE, "label": null, "x": 1})).ok();
    let messages = json!([{"role": "user", "content": "Say 3."}]);
    let expected = native(&client, json!({"messages": messages, "response": RESPONSE}));
    assert_eq!(chat["token_rewards"], expected["rewards"]);
    client.post("/rm", &json!({"prompt": PROMPT})).refused(422);
    for wrong in [json!(7), json!([0, 0, 0]), json!({"role": "user"})] {
        client.post("/rm", &json!({"prompt": wrong, "response": RESPONSE})).refused(422);
    }
    // It is named as it is here.
    let (code, param) = client.post("/rm", &json!({"prompt": PROMPT, "response": ""})).refused(422);
    assert_eq!((code.as_str(), param.as_deref()), ("response_empty", Some("response")));
    server.assert_quiet();
}

#[test]
fn trl() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut request = json!({
        "sequences": [[5, 6, 7, 8, 9, 10], [11, 12, 13]], "prompt_lengths": [2, 2],
        "top_logprobs": 1, "temperature": 1.0, "response_format": "json",
    });
    let first = native(&client, json!({"prompt": [5, 6], "response": [7, 8, 9, 10]}));
    let second = native(&client, json!({"prompt": [11, 12], "response": [13]}));
    let each = |values: &Value| values.as_array().expect("numbers").iter().map(|v| json!([v])).collect();
    let nested = |name: &str| -> Value {
        let both: [Vec<Value>; 2] = [each(&first[name]), each(&second[name])];
        json!(both)
    };
    let answer = client.post("/get_sequence_logprobs/", &request).ok();
    assert_eq!(answer["logprobs"], nested("rewards"));
    assert_eq!(answer["logprob_token_ids"], json!([[[7], [8], [9], [10]], [[13]]]));
    request["response_format"] = json!("binary");
    let binary = client.post("/get_sequence_logprobs/", &request).ok();
    assert_eq!(binary["shape"], json!([2, 4, 1]));
    assert_eq!(binary["completion_lengths"], json!([4, 1]));
    let values = from_base64(&binary["logprobs_b64"]);
    assert_eq!(values[..4], floats(&first["rewards"]));
    assert_eq!(values[5..], [f32::NEG_INFINITY; 3]);
    assert_eq!(binary["actual_logprobs_b64"], binary["logprobs_b64"]);
    request["temperature"] = json!(0.5);
    let refused = client.post("/get_sequence_logprobs/", &request).refused(422);
    assert_eq!(refused.1.as_deref(), Some("temperature"));
    request["temperature"] = json!(1);
    request["prompt_lengths"] = json!([2, 4]);
    let refused = client.post("/get_sequence_logprobs/", &request).refused(422);
    assert_eq!(refused.1.as_deref(), Some("prompt_lengths[1]"));
    server.assert_quiet();
}

#[test]
fn vllm_pooling_and_classify() {
    for (name, unread) in [("qwen2", 1), ("qwen2-token-classification", 0)] {
        let server = Server::start(&fixture(name), &[]);
        let client = server.client();
        let ids: Vec<u32> = (20..32).collect();
        let expected = native(&client, json!({"prompt": ids[..unread], "response": ids[unread..]}));
        let pooled =
            client.post("/pooling", &json!({"model": name, "input": ids, "task": "token_classify"})).ok();
        let data = pooled["data"][0]["data"].as_array().expect("a row per token");
        assert_eq!(data.len(), ids.len(), "{name}: one value per token of the whole input");
        let rewards: Vec<Value> = data[unread..].iter().map(|row| row[0].clone()).collect();
        assert_eq!(json!(rewards), expected["rewards"]);
        assert!(unread == 0 || data[0] == json!([0.0]));
        let two = json!({"model": name, "input": [ids, ids], "encoding_format": "base64"});
        let two = client.post("/pooling", &two).ok();
        assert_eq!(from_base64(&two["data"][1]["data"]).len(), ids.len());
        assert_eq!((&two["object"], &two["data"][1]["index"]), (&json!("list"), &json!(1)));
        // verl's client reads data[-1].probs[-1].
        let text = format!("{PROMPT}{RESPONSE}");
        let class =
            client.post("/classify", &json!({"model": name, "input": text, "use_activation": false})).ok();
        assert_eq!(class["data"].as_array().map(Vec::len), Some(1));
        let tokens = client.post("/tokenize", &json!({"prompt": text})).ok()["tokens"].clone();
        let tokens: Vec<u32> = serde_json::from_value(tokens).expect("ids");
        let expected = native(&client, json!({"prompt": tokens[..unread], "response": tokens[unread..]}));
        assert_eq!(class["data"][0]["probs"], json!([expected["score"]]));
        assert_eq!(class["data"][0]["num_classes"], 1);
        client.post("/classify", &json!({"model": "other", "input": text})).refused(404);
        let short = client.post("/classify", &json!({"input": [vec![0; unread]]})).refused(422);
        assert_eq!(short.1.as_deref(), Some("input[0]"));
        let turns = json!([{"role": "user", "content": "Say 3."}, {"role": "assistant", "content": "3"}]);
        let chat = client.post("/pooling", &json!({"messages": turns, "task": "token_classify"})).ok();
        let next = client.post("/tokenize", &json!({"messages": turns})).ok()["count"].as_u64();
        let count = chat["data"][0]["data"].as_array().map(|rows| rows.len() as u64);
        assert!(count < next, "{name}: {count:?} of {next:?}, nobody is to speak next");
        let forms = [
            json!({"a": 1}),
            json!([[1, 2, 3], "a"]),
            json!(["a", 1]),
            json!([1, -2]),
            json!([1, 1u64 << 40]),
        ];
        for input in forms {
            let (code, param) = client.post("/pooling", &json!({"input": input})).refused(422);
            assert_eq!(code, "invalid_field");
            assert!(param.is_some_and(|param| param.starts_with("input")), "{input}");
        }
        let one_of = client.post("/pooling", &json!({"input": [text.as_str(), &text]})).ok();
        assert_eq!(one_of["data"][0]["data"], one_of["data"][1]["data"]);
        client.post("/pooling", &json!({})).refused(422);
        server.assert_quiet();
    }
}

#[test]
fn what_is_too_much_has_the_dialects_name() {
    let server = Server::start(&fixture("qwen2"), &["--max-queue-tokens", "8"]);
    let (client, ids) = (server.client(), vec![1; 20]);
    for (path, body, param) in [
        ("/get_reward", json!({"query": [format!("{PROMPT}{RESPONSE}")], "prompts": [PROMPT]}), "query"),
        ("/pooling", json!({"input": [ids]}), "input"),
        ("/get_sequence_logprobs/", json!({"sequences": [ids], "prompt_lengths": [5]}), "sequences"),
    ] {
        let refused = client.post(path, &body).refused(413);
        assert_eq!(refused, ("request_too_large".into(), Some(param.into())), "{path}");
    }
    server.assert_quiet();
}
