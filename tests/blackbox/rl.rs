//! The RL client against a real server: it learns, and a restart of the server changes nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use qrm_tests::server::binary;
use qrm_tests::{Server, fixture, until};
use serde_json::{Value, json};

use crate::security::{authority, write};

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

/// What people look at, in every step.
const METRICS: [&str; 20] = [
    "reward",
    "reward_std",
    "reward_model_changed",
    "right",
    "finished",
    "response_length",
    "kl",
    "entropy",
    "clip_fraction",
    "policy_moved",
    "grad_norm",
    "sampling_tokens_per_second",
    "scoring_tokens_per_second",
    "learning_tokens_per_second",
    "sampling_seconds",
    "scoring_seconds",
    "waiting_seconds",
    "waiting_share",
    "learning_seconds",
    "step_seconds",
];

fn finish(child: Child) {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(answer["pass_at_1"].is_number());
}

/// Why it did not go on.
fn refused(child: Child) -> String {
    let output = child.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{words}");
    words
}

fn version(server: &Server) -> String {
    server.client().get("/info").ok()["model_version"].as_str().expect("a version").to_owned()
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
        for (row, name) in steps.iter().flat_map(|row| METRICS.map(|name| (row, format!("train/{name}")))) {
            assert!(row[&name].as_f64().is_some_and(f64::is_finite), "{name}: {row}");
        }
        assert_eq!(std::fs::read_dir(output.join("tensorboard")).expect("a directory").count(), 1);
        assert_eq!(rows.iter().filter(|row| row["eval/pass_at_1"].is_number()).count(), 3);
        // The policy is another, and loads.
        let trained = output.join("model");
        let trained = Server::start(trained.to_str().expect("UTF-8"), &[]);
        assert_ne!(version(&trained), version(&servers[0]));
    }
    for server in servers {
        assert!(server.client().metric("qrm_computed_tokens_total") > 100.0, "both servers take turns");
    }
}

#[test]
fn every_front_makes_the_same_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = authority();
    write(dir.path(), &ours);
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("ca.pem"), ours.pem()).expect("written");
    std::fs::write(path("keys"), "secret\n").expect("written");
    let tls =
        ["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem"), "--api-key-file", &path("keys")];
    let (plain, locked) = (Server::start(&fixture("qwen2"), &[]), Server::start(&fixture("qwen2"), &tls));
    let named = |address: &str| address.replace("127.0.0.1", "localhost");
    let urls = [
        format!("http://{}", plain.address()),
        format!("grpc://{}", plain.grpc()),
        format!("https://{}", named(locked.address())),
        format!("grpcs://{}", named(locked.grpc())),
    ];
    let ca = path("ca.pem");
    let flags = ["--steps", "2", "--baseline", "entropy", "--reward-ca", &ca, "--key", "secret"];
    let weights: Vec<Vec<u8>> = urls
        .iter()
        .map(|url| {
            let output = dir.path().join(url.replace([':', '/'], "-"));
            finish(client("reinforce", url, &output, &flags));
            std::fs::read(output.join("model/model.safetensors")).expect("weights")
        })
        .collect();
    assert!(weights.iter().all(|w| *w == weights[0]));
    // A wrong key is no matter of patience.
    for url in &urls[2..] {
        let output = dir.path().join("refused");
        let flags = ["--steps", "1", "--reward-ca", &ca, "--key", "guessed"];
        let words = refused(client("reinforce", url, &output, &flags));
        assert!(words.contains("refuses"), "{words}");
    }
}

/// Its ids are all in range there, and every reward would be of another text.
#[test]
fn a_model_of_another_vocabulary_does_not_judge() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_without_model(&[]);
    for url in [format!("http://{}", server.address()), format!("grpc://{}", server.grpc())] {
        let words = refused(client("reinforce", &url, &dir.path().join("run"), &["--steps", "1"]));
        assert!(words.contains("another vocabulary"), "{words}");
    }
}

/// The rewards of half a step from one and of half from another would be scaled together.
#[test]
fn a_step_is_judged_by_one_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let servers = ["qwen2", "qwen3"].map(|model| Server::start(&fixture(model), &[]));
    let http = servers.each_ref().map(|s| format!("http://{}", s.address())).join(",");
    let grpc = servers.each_ref().map(|s| format!("grpc://{}", s.grpc())).join(",");
    for urls in [http, grpc] {
        let words = refused(client("reinforce", &urls, &dir.path().join("run"), &["--steps", "1"]));
        assert!(servers.iter().all(|server| words.contains(&version(server))), "{words}");
    }
}

/// New weights under a run are told, and under a saved state refused unless they are meant.
#[test]
fn another_version_does_not_judge_unseen() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = dir.path().join("run");
    let server = Server::start_with(&fixture("qwen2"), &[], &[("QRM_ADMIN_KEY", "secret")]);
    let (url, old) = (format!("http://{}", server.address()), version(&server));
    let flags = |steps: &'static str| ["--steps", steps, "--save-every", "25", "--resume"];
    let mut child = client("reinforce", &url, &output, &flags("200"));
    until("there are steps", || metrics(&output).len() >= 3);
    let admin = server.client().with_key("secret");
    admin.post("/admin/reload", &json!({"source": fixture("qwen3")})).ok();
    assert!(child.try_wait().expect("a child").is_none(), "the client was too quick for this test");
    let new = version(&server);
    let told = child.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success() && words.contains(&old) && words.contains(&new), "{words}");
    let is_changed = |row: &&Value| row["train/reward_model_changed"] == 1.0;
    assert_eq!(metrics(&output).iter().filter(is_changed).count(), 1);
    // The state is of the new ones.
    finish(client("reinforce", &url, &output, &flags("201")));
    let server = Server::start(&fixture("qwen2"), &[]);
    let url = format!("http://{}", server.address());
    let words = refused(client("reinforce", &url, &output, &flags("201")));
    assert!([&old[..], &new, "--new-reward-model"].iter().all(|word| words.contains(word)), "{words}");
    let meant = [&flags("225")[..], &["--new-reward-model"]].concat();
    finish(client("reinforce", &url, &output, &meant));
    // The next state is of these.
    finish(client("reinforce", &url, &output, &flags("226")));
    assert_eq!(metrics(&output).iter().filter(is_changed).count(), 2);
}

/// Every answer with the server's own rewards for it, and pairs that the trainer takes.
#[test]
fn samples_are_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data.jsonl");
    let rows = [
        json!({"prompt": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}).to_string(),
        json!({"question": "What is 900 + 100?", "answer": "#### 1,000"}).to_string(),
    ];
    std::fs::write(&data, rows.join("\n")).expect("written");
    let server = Server::start(&fixture("qwen2"), &[]);
    let output = dir.path().join("answers.jsonl");
    let run = Command::new(binary().with_file_name("qrm-rl"))
        .args(["sample", "--policy", &fixture("qwen2"), "--questions", "5", "--samples", "3"])
        .args(["--max-new-tokens", "8", "--with-rewards", "--reward-url"])
        .arg(format!("http://{}", server.address()))
        .arg("--data")
        .arg(&data)
        .arg("--output")
        .arg(&output)
        .output()
        .expect("it runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let summary: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!((&summary["answers"], &summary["rows"]), (&Value::from(6), &Value::from(6)));
    let text = std::fs::read_to_string(&output).expect("rows");
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        assert!(row["messages"][0]["content"].as_str().is_some_and(|q| q.starts_with("What is ")), "{row}");
        assert_eq!(row["reward"], "advantage");
        assert_eq!(row["model_version"], version(&server));
        let length = |name: &str| row[name].as_array().map(Vec::len);
        assert!(length("tokens") == length("rewards") && length("tokens") > Some(0), "{row}");
    }
    assert_eq!(text.lines().count(), 6, "no question twice");
    let run = Command::new(binary().with_file_name("qrm-rl"))
        .args(["sample", "--policy", &fixture("qwen2"), "--rows", "pairs", "--with-rewards", "--output"])
        .arg(&output)
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && words.contains("--rows answers"), "{words}");
}

/// What a policy can do is not measured on what it learns from.
#[test]
fn questions_of_a_file_need_others_beside_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let [train, held_out] = ["train.jsonl", "held-out.jsonl"].map(|name| {
        let path = dir.path().join(name);
        std::fs::write(&path, "{\"prompt\": \"What is 2 + 2?\", \"answer\": \"#### 4\"}\n").expect("written");
        path.to_str().expect("UTF-8").to_owned()
    });
    let server = Server::start(&fixture("qwen2"), &[]);
    let url = format!("http://{}", server.address());
    let output = dir.path().join("run");
    let alone = ["--steps", "1", "--save-every", "1", "--data", &train];
    let words = refused(client("reinforce", &url, &output, &alone));
    assert!(words.contains("--eval-data"), "{words}");
    finish(client("reinforce", &url, &output, &[&alone[..], &["--eval-data", &held_out]].concat()));
    // A new run would find the states of this one.
    let words = refused(client("reinforce", &url, &output, &["--steps", "1"]));
    assert!(words.contains("--resume"), "{words}");
}

/// All of the experiment with models that have learnt nothing.
#[test]
fn the_experiment_comes_to_its_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let reproduce = |flags: &[&str]| {
        let run = Command::new(binary().with_file_name("qrm-rl"))
            .args(["reproduce", "--quick", "--seeds", "1", "--output"])
            .arg(dir.path())
            .args(flags)
            .output()
            .expect("it runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stderr).expect("UTF-8")
    };
    let results = || std::fs::read_to_string(dir.path().join("RESULTS.md")).expect("results");
    assert!(reproduce(&["--judges", "orm"]).contains("qrm-rl ppo"), "the commands are shown");
    assert!(results().contains("| PPO | ORM |") && !results().contains("Q-RM"), "{}", results());
    assert!(!dir.path().join("rm/qrm").exists(), "nobody wanted it");
    assert!(!reproduce(&[]).contains("task start"), "what is there is kept");
    let results = results();
    for row in [
        "| SFT |",
        "| PPO | ORM |",
        "| REINFORCE | Q-RM |",
        "| PPO | DPO-RM |",
        "| GRPO | the verifier itself |",
    ] {
        assert_eq!(results.matches(row).count(), 2, "{row} at each difficulty: {results}");
    }
    for plot in results.lines().filter_map(|line| line.strip_prefix("![")?.split_once("](")) {
        let path = dir.path().join(plot.1.trim_end_matches(')'));
        let svg = std::fs::read_to_string(&path).expect("a plot");
        assert!(
            svg.starts_with("<svg") && svg.contains("</svg>") && !svg.contains("NaN"),
            "{}",
            path.display()
        );
    }
    // Done is done.
    assert_eq!(reproduce(&[]), "");
    assert_eq!(std::fs::read_to_string(dir.path().join("RESULTS.md")).expect("results"), results);
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
    let mut child = client("reinforce", &url, &disturbed, &flags);
    until("there are steps", || metrics(&disturbed).len() >= 3);
    server.signal("KILL");
    assert!(child.try_wait().expect("a child").is_none(), "the client was too quick for this test");
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
    until("there is a state", || killed.join("policy/checkpoints/step-4").exists());
    child.kill().expect("killed");
    assert!(!child.wait().expect("dead").success(), "the client was too quick for this test");
    finish(client("ppo", &url, &killed, &flags));
    let weights = |output: &Path| std::fs::read(output.join("model/model.safetensors")).expect("weights");
    assert!(weights(&calm) == weights(&killed), "the same final weights");
    let steps = |output: &Path| -> Vec<Value> {
        let rows = metrics(output).into_iter().filter(|row| row["train/reward"].is_number());
        rows.map(|row| json!([row["step"], row["train/reward"], row["train/kl"]])).collect()
    };
    assert_eq!(steps(&calm), steps(&killed));
    // One that is done is done, and has nothing to add.
    let before = metrics(&killed).len();
    finish(client("ppo", &url, &killed, &flags));
    assert_eq!(metrics(&killed).len(), before);
    assert!(weights(&calm) == weights(&killed), "the same final weights");
}

/// At once, not after ten minutes of waiting for a server.
#[test]
fn what_cannot_work_is_said_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |algorithm: &str, url: &str, flags: &[&str], why: &str| {
        let run = Command::new(binary().with_file_name("qrm-rl"))
            .args([algorithm, "--policy", &fixture("qwen2"), "--reward-url", url, "--output"])
            .arg(dir.path())
            .args(["--prompts", "2", "--max-new-tokens", "4", "--eval-questions", "1"])
            .args(flags)
            .output()
            .expect("it runs");
        let words = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && words.contains(why), "{words}");
    };
    refused("reinforce", "localhost:8080", &[], "http://");
    refused("reinforce", "http://", &[], "http://");
    refused("grpo", "http://127.0.0.1:9", &["--samples", "1"], "--samples 2");
    // Who is waited for is named while one waits.
    refused("reinforce", "http://127.0.0.1:9", &["--patience", "1"], "http://127.0.0.1:9: ");
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
