//! Several models, and new weights under load.

use qrm_tests::{Client, Rng, Server, copy, fixture, until};
use serde_json::{Value, json};

fn version(client: &Client) -> String {
    client.get("/info").ok()["model_version"].as_str().expect("a version").to_owned()
}

fn rewards(client: &Client, request: &Value) -> (Value, Value) {
    let answer = client.rewards(request).ok();
    (answer["model_version"].clone(), answer["data"][0]["rewards"].clone())
}

#[test]
fn requests_go_to_the_model_they_name() {
    let models = [format!("small={}", fixture("qwen2")), fixture("llama-tied")];
    let server = Server::start(&models[0], &["--model", &models[1]]);
    let client = server.client();
    let names = client.get("/v1/models").ok();
    assert_eq!((&names["data"][0]["id"], &names["data"][1]["id"]), (&json!("small"), &json!("llama-tied")));
    let mut request = Rng::new(1).request(3);
    let unnamed = client.rewards(&request).ok();
    for (name, alone) in [("small", "qwen2"), ("llama-tied", "llama-tied")] {
        request["model"] = json!(name);
        let answer = client.rewards(&request).ok();
        assert_eq!(answer["model"], name);
        assert_eq!(answer["data"] == unnamed["data"], name == "small");
        let alone = Server::start(&fixture(alone), &[]);
        request["model"] = json!(null);
        assert_eq!(alone.client().rewards(&request).ok()["data"], answer["data"]);
        let tokens = client.post("/tokenize", &json!({"model": name, "prompt": "Say 3"})).ok();
        assert!(tokens["count"].as_u64() > Some(0));
    }
    request["model"] = json!("other");
    assert_eq!(client.rewards(&request).refused(404).0, "model_not_found");
    server.assert_quiet();
}

#[test]
fn new_weights_are_swapped_in_and_bad_ones_are_not() {
    let work = tempfile::tempdir().expect("a directory");
    copy("qwen2", work.path());
    let path = work.path().to_str().expect("UTF-8");
    let server = Server::start_with(path, &[], &[("QRM_ADMIN_KEY", "secret")]);
    let (client, admin) = (server.client(), server.client().with_key("secret"));
    let request = Rng::new(2).request(1);
    let (old, old_rewards) = rewards(&client, &request);
    assert_eq!(old, version(&client));

    // Nobody else may, and nothing changes while nothing new is there.
    for other in [client.clone(), client.with_key("secreT")] {
        assert_eq!(other.post("/admin/reload", &json!({})).refused(401).0, "not_admin");
    }
    let same = admin.post("/admin/reload", &json!({})).ok();
    assert_eq!((&same["model_version"], &same["previous_version"]), (&old, &old));
    assert_eq!(rewards(&client, &request), (old.clone(), old_rewards.clone()));

    // A checkpoint that was cut off, one that is not there, one with nothing in it.
    let whole = std::fs::read(work.path().join("model.safetensors")).expect("weights");
    std::fs::write(work.path().join("model.safetensors"), &whole[..whole.len() / 2]).expect("written");
    for body in [json!({}), json!({"source": "/nowhere/at/all"}), json!({"source": fixture("")})] {
        assert_eq!(admin.post("/admin/reload", &body).refused(422).0, "checkpoint_refused");
        assert_eq!(rewards(&client, &request), (old.clone(), old_rewards.clone()));
    }
    assert_eq!(admin.post("/admin/reload", &json!({"model": "other"})).refused(404).0, "model_not_found");
    // One at a time; who comes meanwhile is told.
    std::fs::write(work.path().join("model.safetensors"), &whole).expect("written");
    let at_once = || -> Vec<u16> {
        std::thread::scope(|scope| {
            let ask = || admin.post("/admin/reload", &json!({})).status;
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().map(|answer| answer.join().expect("an answer")).collect()
        })
    };
    let mut told = false;
    for _ in 0..20 {
        let all = at_once();
        assert!(all.contains(&200) && all.iter().all(|status| [200, 409].contains(status)), "{all:?}");
        told |= all.contains(&409);
    }
    assert!(told, "nobody came while another reload was under way");

    // New ones, by the route and by signal.
    copy("qwen2-peaked", work.path());
    let new = admin.post("/admin/reload", &json!({})).ok();
    assert_ne!(new["model_version"], old);
    let fresh = Server::start(&fixture("qwen2-peaked"), &[]);
    let peaked = rewards(&fresh.client(), &request);
    assert_eq!(rewards(&client, &request).1, peaked.1);
    copy("qwen2", work.path());
    server.signal("HUP");
    until("SIGHUP reloads", || json!(version(&client)) == old);
    assert_eq!(rewards(&client, &request), (old, old_rewards));
    server.assert_quiet();
}

#[test]
fn what_was_accepted_is_answered_by_the_weights_it_came_for() {
    let work = tempfile::tempdir().expect("a directory");
    copy("qwen2", work.path());
    let path = work.path().to_str().expect("UTF-8");
    let server = Server::start_with(path, &["--threads", "1"], &[("QRM_ADMIN_KEY", "k")]);
    let client = server.client();
    let mut rng = Rng::new(3);
    let bulk = json!({"inputs": (0..300).map(|_| rng.input(60, 300)).collect::<Vec<_>>()});
    let quiet = Server::start(&fixture("qwen2"), &[]).client().rewards(&bulk).ok();
    let old = version(&client);
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| client.rewards(&bulk).ok());
        client.until("qrm_queue_requests", |waiting| waiting >= 1.0);
        copy("qwen2-peaked", work.path());
        client.with_key("k").post("/admin/reload", &json!({})).ok();
        assert!(!accepted.is_finished(), "the bulk request was too quick for this test");
        assert_ne!(version(&client), old);
        assert_ne!(client.rewards(&Rng::new(4).request(2)).ok()["model_version"], old);
        let accepted = accepted.join().expect("answered");
        assert_eq!(accepted["model_version"], old);
        assert_eq!(accepted["data"], quiet["data"]);
    });
    assert_eq!(client.metric("qrm_queue_tokens"), 0.0);
    server.assert_quiet();
}
