//! A trajectory's bits do not depend on its company: alone, in a batch of 64, elsewhere in it, with a shared prefix or
//! without, split over small batches, with one thread or two, with the model on one device, two or in
//! parts, its prompt in the prefix cache or not.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use qrm_tests::{Client, Rng, Server, fixture};
use serde_json::{Value, json};

/// The exact bits of one trajectory's numbers.
fn bits(client: &Client, mut request: Value, at: usize) -> Vec<Vec<u8>> {
    let fields = ["rewards", "logit", "logsumexp", "max", "entropy"];
    request["encoding_format"] = json!("base64");
    request["include"] = json!(fields[1..]);
    let answer = client.rewards(&request).ok();
    let decode =
        |f: &&str| BASE64_STANDARD.decode(answer["data"][at][f].as_str().expect("base64")).expect("base64");
    fields.iter().map(decode).collect()
}

#[test]
fn bits_do_not_depend_on_company() {
    for name in ["qwen2", "mistral-window", "qwen3"] {
        let servers = [
            Server::start(&fixture(name), &["--threads", "1", "--prefix-cache-mib", "0"]),
            Server::start(&fixture(name), &["--threads", "2"]),
            Server::start(&fixture(name), &["--threads", "2", "--max-batch-tokens", "100"]),
            Server::start(&fixture(name), &["--device", "cpu,cpu"]),
            Server::start(&fixture(name), &["--device", "cpu,cpu", "--split-layers"]),
        ];
        let mut rng = Rng::new(3);
        let target = rng.input(90, 75);
        let mut truth = None;
        for server in &servers {
            let client = server.client();
            let alone = bits(&client, json!({ "inputs": [target] }), 0);
            let truth = truth.get_or_insert_with(|| alone.clone());
            assert_eq!(truth[0].len(), 75 * 4);
            assert_eq!(*truth, alone, "{name}: threads and devices");

            for place in [0, 17, 63] {
                let mut request = rng.request(64);
                request["inputs"][place] = target.clone();
                assert_eq!(*truth, bits(&client, request, place), "{name}: place {place} of 64");
            }
            // Neighbours that share its prompt, part of its prompt, or all but its last token.
            for shared in [1, 40, 64, 90, 130, 164] {
                let ids = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).expect("ids") };
                let whole = [ids(&target["prompt"]), ids(&target["response"])].concat();
                let mut neighbour = whole[..shared].to_vec();
                neighbour.extend(rng.ids(20));
                let neighbour = json!({"prompt": neighbour[..1], "response": neighbour[1..]});
                let request = json!({ "inputs": [neighbour, target, neighbour] });
                assert_eq!(*truth, bits(&client, request, 1), "{name}: {shared} tokens shared");
            }
        }
    }
}

#[test]
fn a_prompt_seen_before_is_not_computed_again() {
    let server = Server::start(&fixture("qwen3"), &[]);
    let client = server.client();
    let mut rng = Rng::new(5);
    let prompt = rng.ids(100);
    let inputs: Vec<Value> = (0..8).map(|_| json!({"prompt": prompt, "response": rng.ids(20)})).collect();
    let request = json!({ "inputs": inputs });
    let hits = || client.metric("qrm_prefix_cache_hit_tokens_total");
    let usage = |name: &str| client.rewards(&request).ok()["usage"][name].as_u64().expect("a number");
    assert_eq!((usage("computed_tokens"), hits()), (100 + 8 * 20, 0.0));
    let first: Vec<_> = (0..8).map(|i| bits(&client, request.clone(), i)).collect();
    // Six blocks of sixteen; the seventh is not whole.
    let before = hits();
    assert_eq!(usage("computed_tokens"), 4 + 8 * 20);
    assert_eq!(hits() - before, 96.0);
    assert!(client.metric("qrm_prefix_cache_bytes") > 0.0);
    let cold = Server::start(&fixture("qwen3"), &["--prefix-cache-mib", "0"]);
    for (i, first) in first.into_iter().enumerate() {
        assert_eq!(first, bits(&cold.client(), request.clone(), i));
    }
    assert_eq!(cold.client().metric("qrm_prefix_cache_bytes"), 0.0);
}
