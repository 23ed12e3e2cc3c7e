//! `qrm-server score`: the server's own bits, from a file, and again after a kill.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use qrm_tests::server::binary;
use qrm_tests::{Rng, Server, fixture};
use serde_json::{Value, json};

fn command(input: &Path, output: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.env("QRM_MODEL", fixture("qwen2")).args(["score", "--input"]).arg(input);
    command.arg("--output").arg(output).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn score(input: &Path, output: &Path, flags: &[&str]) -> Output {
    command(input, output, flags).output().expect("it runs")
}

fn rows(n: usize) -> Vec<Value> {
    let mut rng = Rng::new(9);
    (0..n)
        .map(|i| {
            let (prompt, response) = (1 + rng.below(50), 1 + rng.below(50));
            let mut row = rng.input(prompt, response);
            if i % 3 == 0 {
                row = json!({"prompt": row["prompt"], "responses": [row["response"], [7, 8], "text"]});
            }
            row["id"] = if i % 2 == 0 { json!(format!("row-{i}")) } else { json!(i) };
            row
        })
        .collect()
}

fn jsonl(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

#[test]
fn equals_the_server_and_resumes_anywhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let (input, output) = (directory.path().join("in.jsonl"), directory.path().join("out.jsonl"));
    let rows = rows(40);
    std::fs::write(&input, jsonl(&rows)).expect("written");
    let flags = ["--include", "logit,token_ids", "--max-batch-tokens", "200"];
    assert!(score(&input, &output, &flags).status.success());
    let whole = std::fs::read(&output).expect("output");

    let server = Server::start(&fixture("qwen2"), &[]);
    let answer = server.client().rewards(&json!({"inputs": rows, "include": ["logit", "token_ids"]})).ok();
    let lines: Vec<Value> = whole
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("JSON"))
        .collect();
    assert_eq!(Value::Array(lines), answer["data"]);

    let mut rng = Rng::new(10);
    for _ in 0..6 {
        std::fs::write(&output, &whole[..rng.below(whole.len())]).expect("written");
        assert!(score(&input, &output, &flags).status.success());
        assert_eq!(std::fs::read(&output).expect("output"), whole);
    }
    // Nothing left to do changes nothing; another input's output is not written over.
    assert!(score(&input, &output, &flags).status.success());
    assert_eq!(std::fs::read(&output).expect("output"), whole);
    std::fs::write(&input, jsonl(&rows[5..])).expect("written");
    let refused = |flags: &[&str]| {
        let result = score(&input, &output, flags);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.code() == Some(1) && stderr.contains("remove it to begin anew"), "{stderr}");
        assert_eq!(std::fs::read(&output).expect("output"), whole);
    };
    refused(&flags);
    // Nor are other rewards written after those that are there, whether rows have ids or not.
    let anonymous = |rows: &[Value]| -> String {
        rows.iter().map(|row| format!("{}\n", json!({"prompt": row["prompt"], "response": [5, 6]}))).collect()
    };
    std::fs::write(&input, jsonl(&rows)).expect("written");
    refused(&[&flags[..], &["--reward", "logit"]].concat());
    refused(&[&flags[..], &["--append-eos"]].concat());
    refused(&[&flags[..], &["--model", &fixture("qwen2-peaked")]].concat());
    std::fs::remove_file(&output).expect("removed");
    std::fs::write(&input, anonymous(&rows[..10])).expect("written");
    assert!(score(&input, &output, &flags).status.success());
    let whole = std::fs::read(&output).expect("output");
    std::fs::write(&input, anonymous(&rows[5..25])).expect("written");
    assert!(!score(&input, &output, &flags).status.success());
    assert_eq!(std::fs::read(&output).expect("output"), whole);
    // An input that has grown goes on.
    std::fs::write(&input, anonymous(&rows[..20])).expect("written");
    assert!(score(&input, &output, &flags).status.success());
    assert!(std::fs::read(&output).expect("output").starts_with(&whole));
}

#[test]
fn a_pipe_is_no_input() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("out.jsonl");
    let mut child =
        command(Path::new("/dev/stdin"), &output, &[]).stdin(Stdio::piped()).spawn().expect("it runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(jsonl(&rows(3)).as_bytes()).expect("written");
    drop(pipe);
    let result = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.code() == Some(1) && stderr.contains("a pipe cannot be read twice"), "{stderr}");
}

#[test]
fn a_bad_row_is_named_before_anything_is_scored() {
    let directory = tempfile::tempdir().expect("a directory");
    let (input, output) = (directory.path().join("in.jsonl"), directory.path().join("out.jsonl"));
    let text = jsonl(&rows(3));
    for (bad, says) in [
        ("{\"prompt\": [1], \"response\": []}", "response"),
        ("{\"prompt\": [1], \"respose\": [2]}", "respose"),
        ("{\"prompt\": [1], \"response\": [9999]}", "9999"),
        ("not json", "expected"),
        ("{\"id\": \"row-0\", \"prompt\": [1], \"response\": [2]}", "row-0"),
    ] {
        std::fs::write(&input, format!("{text}\n{bad}\n")).expect("written");
        let result = score(&input, &output, &[]);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("line 5") && stderr.contains(says), "{stderr}");
        assert!(!output.exists());
    }
    assert_eq!(score(&directory.path().join("nothing"), &output, &[]).status.code(), Some(1));
}
