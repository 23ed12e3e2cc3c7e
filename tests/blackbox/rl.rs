//! The RL client against a real server: it learns, and a restart of the server changes nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qrm_tests::server::binary;
use qrm_tests::{Server, fixture};
use serde_json::Value;

fn client(algorithm: &str, url: &str, output: &Path, flags: &[&str]) -> Child {
    Command::new(binary().with_file_name("qrm-rl"))
        .args([algorithm, "--policy", &fixture("qwen2"), "--reward-url", url, "--output"])
        .arg(output)
        .args(["--prompts", "4", "--samples", "2", "--max-new-tokens", "12", "--eval-questions", "4"])
        .args(["--lr", "1e-3", "--eval-every", "2", "--kl-coef", "0.05"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts")
}

fn finish(child: Child) {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(answer["pass_at_1"].is_number());
}

fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn every_algorithm_learns_from_the_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let servers = [Server::start(&fixture("qwen2"), &[]), Server::start(&fixture("qwen2"), &[])];
    let urls = servers.each_ref().map(|s| format!("http://{}", s.address())).join(",");
    let scalar = fixture("qwen2-token-classification");
    let runs: [(&str, &[&str]); 4] = [
        ("reinforce", &["--normalize", "standard"]),
        ("grpo", &["--epochs", "2"]),
        ("ppo", &["--minibatches", "2", "--critic", &scalar]),
        ("ppo", &["--reward", "logit", "--credit", "return"]),
    ];
    for (i, (algorithm, flags)) in runs.into_iter().enumerate() {
        let output = dir.path().join(i.to_string());
        finish(client(algorithm, &urls, &output, &[flags, &["--steps", "3"]].concat()));
        let rows = metrics(&output);
        let steps: Vec<&Value> = rows.iter().filter(|row| row["train/reward"].is_number()).collect();
        assert_eq!(steps.len(), 3, "{rows:?}");
        assert!(steps.iter().all(|row| row["train/grad_norm"].as_f64().is_some_and(|g| g > 0.0)));
        assert_eq!(rows.iter().filter(|row| row["eval/pass_at_1"].is_number()).count(), 3);
        // The policy is another, and loads.
        let version = |model: &str| {
            let server = Server::start(model, &[]);
            server.client().get("/info").ok()["model_version"].clone()
        };
        let trained = output.join("model");
        assert_ne!(version(trained.to_str().expect("UTF-8")), version(&fixture("qwen2")));
    }
    for server in servers {
        assert!(server.client().metric("qrm_computed_tokens_total") > 100.0, "both servers take turns");
    }
}

#[test]
fn a_restart_of_the_server_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let [calm, disturbed] = ["calm", "disturbed"].map(|name| dir.path().join(name));
    let mut server = Server::start(&fixture("qwen2"), &[]);
    let (url, port) = (format!("http://{}", server.address()), server.address().rsplit(':').next());
    let port = port.expect("a port").to_owned();
    let flags = ["--steps", "12", "--normalize", "standard"];
    finish(client("reinforce", &url, &calm, &flags));
    let child = client("reinforce", &url, &disturbed, &flags);
    let start = Instant::now();
    while metrics(&disturbed).len() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "no step");
        std::thread::sleep(Duration::from_millis(2));
    }
    server.signal("KILL");
    server.wait(Duration::from_secs(10));
    std::thread::sleep(Duration::from_millis(300));
    let mut again = Command::new(binary())
        .args(["--model", &fixture("qwen2"), "--port", &port, "--grpc-port", "0"])
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    finish(child);
    let _ = again.kill();
    let _ = again.wait();
    let weights = |output: &Path| std::fs::read(output.join("model/model.safetensors")).expect("weights");
    assert!(weights(&calm) == weights(&disturbed), "the same final weights");
    assert!(metrics(&disturbed).len() >= 12);
}

#[test]
fn a_killed_run_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&fixture("qwen2"), &[]);
    let url = format!("http://{}", server.address());
    let flags = ["--steps", "8", "--save-every", "2", "--minibatches", "2", "--resume"];
    let [calm, killed] = ["calm", "killed"].map(|name| dir.path().join(name));
    finish(client("ppo", &url, &calm, &flags));
    let mut child = client("ppo", &url, &killed, &flags);
    let start = Instant::now();
    while !killed.join("policy/checkpoints/step-4").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no state");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("dead");
    finish(client("ppo", &url, &killed, &flags));
    let weights = |output: &Path| std::fs::read(output.join("model/model.safetensors")).expect("weights");
    assert!(weights(&calm) == weights(&killed), "the same final weights");
    let steps = |output: &Path| -> Vec<Value> {
        let rows = metrics(output).into_iter().filter(|row| row["train/reward"].is_number());
        rows.map(|row| serde_json::json!([row["step"], row["train/reward"], row["train/kl"]])).collect()
    };
    assert_eq!(steps(&calm), steps(&killed));
}

#[test]
fn a_loop_of_ones_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&fixture("qwen2"), &[]);
    let output = dir.path().join("model");
    let example = binary().with_file_name("examples").join("reinforce");
    let run = Command::new(example)
        .args([&fixture("qwen2"), &format!("http://{}", server.address()), "2"])
        .arg(&output)
        .output();
    let run = run.expect("the example runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8_lossy(&run.stdout).lines().count(), 2);
    assert!(output.join("model.safetensors").exists());
}
