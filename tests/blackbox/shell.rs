//! What the binary does beside serving: for images, shells and `man`.

use std::process::{Command, Output};

use qrm_tests::server::binary;
use qrm_tests::{Server, fixture};
use serde_json::{Value, json};

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().expect("it runs")
}

#[test]
fn health_is_the_exit_status() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let port = server.address().rsplit(':').next().expect("a port").to_owned();
    let healthy = run(&["health", "--port", &port]);
    assert!(healthy.status.success(), "{healthy:?}");
    drop(server);
    assert_eq!(run(&["health", "--port", &port]).status.code(), Some(1));
}

#[test]
fn shells_and_man_know_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let out = run(&["completions", shell]);
        assert!(String::from_utf8_lossy(&out.stdout).contains("max-queue-tokens"), "{shell}");
    }
    let page = run(&["man"]);
    let text = String::from_utf8_lossy(&page.stdout);
    assert!(text.contains(".TH qrm") && text.contains("max\\-queue\\-tokens"), "{text}");
}

/// Every user of the machine can read a process's flags.
#[test]
fn no_key_is_a_flag() {
    for flag in ["--admin-key", "--api-key", "--api-keys"] {
        assert_eq!(run(&["serve", flag, "secret"]).status.code(), Some(2), "{flag}");
    }
}

#[test]
fn a_plan_is_measured_or_told() {
    let model = fixture("qwen2");
    let job =
        ["--prompts", "4", "--samples", "2", "--prompt-tokens", "8", "--response-tokens", "8", "--json"];
    let plan = |more: &[&str]| -> Value {
        let out = run(&[&["plan"], &job[..], more].concat());
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{out:?}"))
    };
    let measured = plan(&["--model", &model]);
    assert_eq!(measured["tokens"], 4 * (8 + 2 * 8));
    // The whole job is small enough to be what is measured.
    assert_eq!(measured["machine"]["trajectories"], 8, "{measured}");
    let number = |name: &str| measured[name].as_f64().expect("a number");
    assert!(number("tokens_per_second") > 0.0 && number("memory_bytes") > 0.0, "{measured}");
    let told = plan(&["--tokens-per-second", "0.1"]);
    // 96 tokens are 960 s, a step is 120 s of which 70 % may be used.
    assert_eq!((&told["replicas_overlapped"], &told["machine"]), (&json!(12), &Value::Null));

    let long = run(&["plan", "--model", &model, "--prompt-tokens", "100000000"]);
    assert!(!long.status.success() && String::from_utf8_lossy(&long.stderr).contains("context"), "{long:?}");
    assert_eq!(run(&["plan", "--prompts", "0"]).status.code(), Some(2));
}

#[test]
fn a_gpu_that_is_not_there_is_said_to_be_missing() {
    let missing = run(&["serve", "--device", "cuda:7", "--port", "0", "--grpc-port", "0"]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(!missing.status.success() && said.contains("--device cuda:7"), "{said}");
    let mixed = run(&["serve", "--device", "cpu,cuda:0", "--port", "0", "--grpc-port", "0"]);
    assert!(
        !mixed.status.success() && String::from_utf8_lossy(&mixed.stderr).contains("do not mix"),
        "{mixed:?}"
    );
}

#[test]
fn a_cpu_that_is_not_there_is_said_to_be_missing() {
    let missing = run(&["serve", "--device", "cpu:1023", "--port", "0", "--grpc-port", "0"]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("CPU 1023 is none that this process may use"), "{said}");
    assert_eq!(missing.status.code(), Some(2));
}
