//! Two processes under `mpirun` against one with the doubled batch. `cargo test -p qrm-trainer --features mpi`.
#![cfg(feature = "mpi")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const TRAINER: &str = env!("CARGO_BIN_EXE_qrm-trainer");

fn pairs(n: usize) -> String {
    let row =
        |i: usize| json!({"prompt": [3, 20 + i], "chosen": [20 + i, 21 + i], "rejected": [19 + i, 18, 17]});
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

fn train(work: &Path, processes: usize, output: &str, flags: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen2");
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--oversubscribe", "--bind-to", "none", "-n", &processes.to_string(), TRAINER, "qrm"]);
    command.arg("--model").arg(model).arg("--train").arg(work.join("train.jsonl"));
    command.arg("--output").arg(work.join(output)).args(flags).output().unwrap()
}

fn losses(work: &Path, output: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(work.join(output).join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.filter_map(|row| row["train/loss"].as_f64()).collect()
}

#[test]
fn two_processes_are_one_with_the_doubled_batch() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    std::fs::write(work.join("train.jsonl"), pairs(60)).unwrap();
    let common = ["--steps", "20", "--lr", "1e-3", "--threads", "1", "--batch"];
    for (processes, output, batch) in [(1, "one", "8"), (2, "two", "4")] {
        let ran = train(work, processes, output, &[&common[..], &[batch]].concat());
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let (one, two) = (losses(work, "one"), losses(work, "two"));
    assert_eq!((one.len(), two.len()), (20, 20));
    assert!(one[19] < 0.8 * one[0]);
    for (a, b) in one.iter().zip(&two) {
        assert!((a - b).abs() < 1e-4 * a, "{one:?} {two:?}");
    }
    // A run that two began, two go on with.
    let saved = [&common[..], &["4", "--save-every", "10"]].concat();
    assert!(train(work, 2, "saved", &saved).status.success());
    std::fs::remove_dir_all(work.join("saved/checkpoints/step-20")).unwrap();
    let resumed = train(work, 2, "saved", &[&saved[..], &["--resume"]].concat());
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("from step 10"));
    let weights = |output: &str| std::fs::read(work.join(output).join("model/model.safetensors")).unwrap();
    assert_eq!(weights("two"), weights("saved"));
}

#[test]
fn one_that_fails_takes_the_other_along() {
    let work = tempfile::tempdir().unwrap();
    std::fs::write(work.path().join("train.jsonl"), pairs(20)).unwrap();
    let wild = ["--steps", "30", "--batch", "4", "--lr", "1e20", "--max-grad-norm", "0", "--warmup", "0"];
    let ran = train(work.path(), 2, "wild", &wild);
    assert!(!ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("stopped at step"));
}
