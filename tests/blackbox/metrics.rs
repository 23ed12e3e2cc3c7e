//! What Prometheus is told: all of it documented, bounded whatever clients send, and true.

use std::collections::BTreeSet;

use qrm_tests::{Client, Rng, Server, copy, fixture};
use serde_json::{Value, json};

fn scrape(server: &Server) -> String {
    server.client().get("/metrics").ok().as_str().expect("text").to_owned()
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series}: {text}")).trim().parse().expect("a number")
}

/// Names with their types, as the server says and as the table does.
#[test]
fn every_metric_is_in_the_table() {
    let server = Server::start_with(&fixture("qwen2"), &[], &[("QRM_ADMIN_KEY", "admin")]);
    let client = server.client();
    client.rewards(&Rng::new(1).request(3)).ok();
    assert_eq!(client.with_key("admin").post("/admin/reload", &json!({})).status, 200);
    // A key's tokens have series once there is a key.
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), "alice secret").expect("written");
    let locked = Server::start(&fixture("qwen2"), &["--api-key-file", keys.path().to_str().expect("UTF-8")]);
    let client = locked.client().with_key("secret");
    client.rewards(&Rng::new(1).request(3)).ok();
    let both = scrape(&server) + client.get("/metrics").ok().as_str().expect("text");
    let said: BTreeSet<(&str, &str)> =
        both.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/metrics.md");
    let table = std::fs::read_to_string(table).expect("the table");
    let row = |line: &'static str| -> Option<(&'static str, &'static str)> {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        Some((cells.next()?.trim_end_matches('`'), cells.next()?))
    };
    let table: &'static str = table.leak();
    assert_eq!(said, table.lines().filter_map(row).collect());
}

/// `QRM_SERIES_REQUESTS` says how many requests.
#[test]
fn clients_make_no_series() {
    let asked_for = std::env::var("QRM_SERIES_REQUESTS").ok().and_then(|n| n.parse().ok());
    let count: usize = asked_for.unwrap_or(1200);
    let server = Server::start(&fixture("qwen2"), &[]);
    let ask = |client: &Client, i: usize| {
        let mut request = Rng::new(i as u64).request(1);
        match i % 4 {
            0 => request["model"] = json!(format!("model-{i}")),
            1 => request["reward"] = json!(format!("reward-{i}")),
            2 => drop(client.get(&format!("/nowhere/{i}"))),
            _ => drop(client.send("PATCH", "/classify", &[("x-request-id", &i.to_string())], b"{}")),
        }
        client.with_key(&format!("key-{i}")).rewards(&request);
    };
    (0..8).for_each(|i| ask(&server.client(), i));
    scrape(&server); // has series of its own from then on
    let before = scrape(&server).lines().count();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let client = server.client();
            scope.spawn(move || (8 + part..count).step_by(4).for_each(|i| ask(&client, i)));
        }
    });
    let text = scrape(&server);
    assert_eq!(text.lines().count(), before, "{text}");
    eprintln!("{before} lines before and after {count} requests");
    let unknown = r#"qrm_requests_total{dialect="",key="",model="",route="unknown",status="404"}"#;
    assert!(value(&text, unknown) >= (count / 4) as f64);
}

/// Counts, sums and buckets are those of the answers.
#[test]
fn rewards_are_told_as_they_are() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let (mut tokens, mut scores, mut squares, mut below) = (0, 0.0, 0.0, 0);
    for seed in 0..4 {
        let mut request = Rng::new(seed).request(5);
        request["normalize"] = json!("standard");
        request["scale"] = json!(3.0);
        client.rewards(&request).ok(); // the policy's units are not ours
        request["normalize"] = json!("none");
        request["scale"] = json!(1.0);
        let answer = client.rewards(&request).ok();
        for datum in answer["data"].as_array().expect("data") {
            let rewards = datum["rewards"].as_array().expect("rewards");
            tokens += rewards.len();
            below += rewards.iter().filter(|r| r.as_f64().is_some_and(|r| r <= -4.0)).count();
            let score = datum["score"].as_f64().expect("a score");
            scores += score;
            squares += score * score;
        }
    }
    let text = scrape(&server);
    let of = |name: &str| value(&text, &format!("{name}{{model=\"qwen2\",reward=\"advantage\"}}"));
    // Each request was scored twice, and had the same scores.
    assert_eq!(of("qrm_token_reward_count"), 2.0 * tokens as f64);
    assert_eq!(of("qrm_trajectory_score_count"), 40.0);
    let mean = (of("qrm_trajectory_score_gains_total") - of("qrm_trajectory_score_losses_total")) / 40.0;
    assert!((mean - scores / 20.0).abs() < 1e-4, "{mean}, {}", scores / 20.0);
    assert!((of("qrm_trajectory_score_squares_total") - 2.0 * squares).abs() < 1e-3 * squares);
    let bucket = "qrm_token_reward_bucket{model=\"qwen2\",reward=\"advantage\",le=\"-4\"}";
    assert_eq!(value(&text, bucket), 2.0 * below as f64);
    assert_eq!(value(&text, "qrm_response_tokens_sum{model=\"qwen2\"}"), 2.0 * tokens as f64);
}

#[test]
fn a_reload_shows() {
    let dir = tempfile::tempdir().expect("a directory");
    copy("qwen2", dir.path());
    let path = dir.path().to_str().expect("UTF-8");
    let server = Server::start_with(&format!("policy={path}"), &[], &[("QRM_ADMIN_KEY", "admin")]);
    let version = || server.client().get("/info").ok()["model_version"].clone();
    let info = |version: &Value| {
        let version = version.as_str().expect("a version");
        format!(
            r#"qrm_model_info{{architecture="Qwen2ForCausalLM",head="q_vocab",model="policy",version="{version}"}} 1"#
        )
    };
    let old = version();
    assert!(scrape(&server).contains(&info(&old)), "{}", scrape(&server));
    copy("qwen2-peaked", dir.path());
    let reload = |body: Value| server.client().with_key("admin").post("/admin/reload", &body).status;
    assert_eq!(reload(json!({})), 200);
    assert_eq!(reload(json!({"source": "/nowhere"})), 422);
    let text = scrape(&server);
    assert!(text.contains(&info(&version())) && !text.contains(&info(&old)), "{text}");
    assert_eq!(value(&text, r#"qrm_reloads_total{model="policy",result="done"}"#), 1.0);
    assert_eq!(value(&text, r#"qrm_reloads_total{model="policy",result="failed"}"#), 1.0);
    assert_eq!(value(&text, "qrm_ready"), 1.0);
    assert_eq!(value(&text, r#"qrm_worker_alive{model="policy"}"#), 1.0);
}
