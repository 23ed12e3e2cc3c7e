//! The real program: what it refuses, what it leaves behind, and what a kill does to it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use qrm_model::reward::{HeadKind, TokenScores};
use qrm_model::{Placement, RewardKind, RewardModel, Trajectory};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Pairs that a model can learn: chosen answers count up, rejected ones down.
fn pairs(n: usize) -> String {
    let row = |i: usize| {
        let (a, up) = (20 + (i * 37) % 400, 1 + i % 3);
        let chosen: Vec<usize> = (0..3 + i % 4).map(|j| a + j * up).collect();
        let rejected: Vec<usize> = (0..2 + i % 5).map(|j| a - j * up).collect();
        format!("{}\n", json!({"prompt": [3, a, 7], "chosen": chosen, "rejected": rejected}))
    };
    (0..n).map(row).collect()
}

struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(work.path("train.jsonl"), pairs(60)).unwrap();
        std::fs::write(work.path("eval.jsonl"), pairs(20)).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, kind: &str, model: &str, output: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qrm-trainer"));
        command.arg(kind).arg("--model").arg(fixture(model)).arg("--train").arg(self.path("train.jsonl"));
        command.arg("--output").arg(self.path(output)).args(flags);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn train(&self, kind: &str, model: &str, output: &str, flags: &[&str]) -> Output {
        let output = self.command(kind, model, output, flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn weights(&self, output: &str) -> Vec<u8> {
        std::fs::read(self.path(output).join("model/model.safetensors")).unwrap()
    }

    fn metrics(&self, output: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(output).join("metrics.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn evaluate(&self, model: &Path) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qrm-trainer"));
        command.args(["evaluate", "--data"]).arg(self.path("eval.jsonl")).arg("--model").arg(model);
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    }
}

fn score(dir: &Path) -> (HeadKind, Vec<TokenScores>) {
    let model = RewardModel::load(dir).unwrap();
    let batch = [Trajectory { prompt_ids: [3, 57, 7].into(), response_ids: [57, 58, 59, 2].into() }];
    (model.head(), model.score(&batch).unwrap().scores)
}

#[test]
fn every_kind_learns_and_is_served() {
    let work = Work::new();
    let eval = work.path("eval.jsonl");
    let common = ["--steps", "60", "--batch", "12", "--lr", "3e-3", "--eval", eval.to_str().unwrap()];
    for (kind, head, reward, more) in [
        ("qrm", HeadKind::QVocab, RewardKind::Advantage, &[][..]),
        ("qrm", HeadKind::QScalar, RewardKind::Logit, &["--head", "scalar"]),
        ("orm", HeadKind::Outcome, RewardKind::Outcome, &[]),
        ("qrm", HeadKind::QVocab, RewardKind::Advantage, &["--lora-rank", "4", "--gradient-checkpointing"]),
        ("dpo", HeadKind::Dpo, RewardKind::Dpo, &["--beta", "0.3"]),
        ("dpo", HeadKind::Dpo, RewardKind::Dpo, &["--store", "bf16", "--lora-rank", "4"]),
    ] {
        let output = format!("{kind}{}", more.concat());
        work.train(kind, "qwen2", &output, &[&common[..], more].concat());
        let metrics = work.metrics(&output);
        let last = |key: &str| metrics.iter().rev().find_map(|row| row[key].as_f64());
        assert!(last("train/accuracy") > Some(0.9), "{output}: {:?}", metrics.last());
        assert!(last("eval/accuracy") > Some(0.8), "{output}: {:?}", metrics.last());
        let model = work.path(&output).join("model");
        let (found, scores) = score(&model);
        assert_eq!((found, found.default_reward()), (head, reward));
        assert!(scores[0].rewards(reward).iter().all(|r| r.is_finite()));
        let evaluation = work.evaluate(&model);
        assert_eq!(evaluation["accuracy"].as_f64(), last("eval/accuracy"), "{output}");
        if kind != "dpo" {
            let config: Value =
                serde_json::from_slice(&std::fs::read(model.join("qrm_config.json")).unwrap()).unwrap();
            // Merged adapters round differently from adapters beside their weights.
            let (saved, now) =
                (config["stats"]["std"].as_f64().unwrap(), evaluation["reward_std"].as_f64().unwrap());
            assert!((saved - now).abs() < 1e-5 * now, "{output}: {saved}, not {now}");
        }
        assert!(std::fs::read_dir(work.path(&output).join("tensorboard")).unwrap().count() == 1);
    }
}

#[test]
fn steps_are_learned_and_served_where_they_end() {
    let work = Work::new();
    // Steps of one letter or more and a newline; those with a q are wrong.
    let row = |i: usize| {
        let steps: Vec<(&str, i32)> = [("a b\n", 1), ("q\n", -1), ("c\n", 1), ("q d\n", -1)]
            .into_iter()
            .cycle()
            .skip(i)
            .take(2 + i % 3)
            .collect();
        let mut end = 0;
        let labels: Vec<Value> = steps
            .iter()
            .map(|(text, label)| {
                end += text.len();
                json!({"end": end, "label": label})
            })
            .collect();
        let response: String = steps.iter().map(|(text, _)| *text).collect();
        format!("{}\n", json!({"prompt": "x", "response": response, "steps": labels}))
    };
    let rows: String = (0..24).map(row).collect();
    std::fs::write(work.path("train.jsonl"), &rows).unwrap();
    std::fs::write(work.path("eval.jsonl"), &rows).unwrap();
    let eval = work.path("eval.jsonl");
    let flags = ["--steps", "60", "--batch", "8", "--lr", "3e-3", "--eval", eval.to_str().unwrap()];
    work.train("prm", "qwen2", "prm", &flags);
    assert!(work.metrics("prm").last().unwrap()["eval/step_error"].as_f64() < Some(0.1));
    let model = RewardModel::load(&work.path("prm/model")).unwrap();
    assert_eq!(model.head(), HeadKind::Step);
    let prompt = model.text().encode("x", false).unwrap().ids;
    let of = |text: &str, end: Option<u32>| {
        let ids = model.text().encode(text, false).unwrap().ids.into_iter().chain(end).collect();
        let batch = [Trajectory { prompt_ids: prompt.clone().into(), response_ids: ids }];
        let rewards = model.score(&batch).unwrap().scores[0].rewards(RewardKind::Step);
        rewards.into_iter().filter(|r| *r != 0.0).collect::<Vec<f32>>()
    };
    let steps = of("a b\nq\nc\n", None);
    assert_eq!(steps.len(), 3);
    assert!(steps[0] > 0.5 && steps[1] < -0.5 && steps[2] > 0.5, "{steps:?}");
    // What was measured in training is what is served: squashed, at the ends that the checkpoint has.
    let config = work.path("prm/model/qrm_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    assert!(config["stats"]["std"].as_f64().unwrap() < 1.0, "{config}");
    // At the end of sequence stands what stands at the last step.
    let eos = model.eos_token_id();
    for (text, sign) in [("a b\nq\n", -1.0), ("q\nc\n", 1.0)] {
        let steps = of(text, eos);
        assert!(steps.len() == 3 && steps[1..].iter().all(|r| r * sign > 0.5), "{steps:?}");
    }
}

#[test]
fn reward_models_start_from_reward_models() {
    let work = Work::new();
    let start = |kind: &str, from: PathBuf, output: &str, flags: &[&str]| {
        work.train(kind, from.to_str().unwrap(), output, &[&["--steps", "2"], flags].concat());
        work.path(output).join("model")
    };
    // A DPO policy on top of another: the reference is that policy, not what it was read against.
    let first = start("dpo", fixture("qwen2"), "dpo", &[]);
    let second = start("dpo", first, "dpo-again", &[]);
    assert_eq!(score(&second).0, HeadKind::Dpo);
    // Read against the first, which is a policy too, it says the same.
    let model =
        RewardModel::load_against(&second, &work.path("dpo/model"), None, &Placement::default()).unwrap();
    let batch = [Trajectory { prompt_ids: [3, 57, 7].into(), response_ids: [57, 58, 59, 2].into() }];
    assert_eq!(model.score(&batch).unwrap().scores[0].own, score(&second).1[0].own);
    // Whoever may read one file of it may read all.
    let mode = |file: &str| std::fs::metadata(second.join(file)).unwrap().permissions();
    assert_eq!(mode("model.safetensors"), mode("config.json"));
    assert_eq!(mode("reference/model.safetensors"), mode("config.json"));
    // A scalar head by another name: `transformers` knows it as `score`, and of whole answers without a bias.
    let renamed = work.path("v-head");
    std::fs::create_dir(&renamed).unwrap();
    let scalar = fixture("qwen2-token-classification");
    for file in std::fs::read_dir(&scalar).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), renamed.join(file.file_name())).unwrap();
    }
    let weights = renamed.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(name, t)| (name.replace("score.", "v_head."), t));
    candle_core::safetensors::save(&tensors.collect(), &weights).unwrap();
    std::fs::write(renamed.join("chat_template.json"), "{\"chat_template\": \"{{ messages }}\"}").unwrap();
    for (kind, flags, names) in [
        ("qrm", &["--head", "scalar"][..], vec!["score.bias", "score.weight"]),
        ("orm", &[], vec!["score.weight"]),
        ("orm", &["--lora-rank", "2"], vec!["score.weight"]),
    ] {
        let output = format!("{kind}{}", flags.len() + names.len());
        let model = start(kind, renamed.clone(), &output, flags);
        let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut heads: Vec<_> = all.names().into_iter().filter(|n| !n.starts_with("model.")).collect();
        heads.sort_unstable();
        assert_eq!(heads, names, "{kind} {flags:?}");
        assert!(score(&model).1[0].logit.iter().all(|z| z.is_finite()));
        assert!(model.join("chat_template.json").exists());
    }
}

#[test]
fn answers_are_learned_by_heart() {
    let work = Work::new();
    let rows = pairs(8).replace("chosen", "response");
    std::fs::write(work.path("train.jsonl"), rows).unwrap();
    work.train("sft", "llama-tied", "sft", &["--steps", "80", "--batch", "8", "--lr", "5e-3"]);
    let metrics = work.metrics("sft");
    let loss = |row: &Value| row["train/loss"].as_f64().unwrap();
    assert!(loss(&metrics[0]) > 5.0 && loss(&metrics[79]) < 0.5, "{:?}", metrics[79]);
}

#[test]
fn a_killed_run_goes_on_to_the_same_model() {
    let work = Work::new();
    let flags = ["--steps", "40", "--batch", "8", "--lr", "1e-3", "--save-every", "3", "--seed", "5"];
    work.train("qrm", "qwen3", "whole", &flags);
    let mut child = work.command("qrm", "qwen3", "cut", &flags).spawn().unwrap();
    let start = Instant::now();
    while !work.path("cut/checkpoints/step-6").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!work.path("cut/model").exists());
    // What a kill in the middle of a save leaves is not taken for a state.
    std::fs::create_dir(work.path("cut/checkpoints/.step-39.partial")).unwrap();
    let resumed = work.train("qrm", "qwen3", "cut", &[&flags[..], &["--resume"]].concat());
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("from step"));
    assert_eq!(work.weights("whole"), work.weights("cut"));
    let losses = |run: &str| work.metrics(run).iter().map(|r| r["train/loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses("whole"), losses("cut"));
    // The same flags give the same bits with another number of threads.
    work.train("qrm", "qwen3", "threads", &[&flags[..], &["--threads", "1"]].concat());
    assert_eq!(work.weights("whole"), work.weights("threads"));
    // Where only the end was lost, it is made again, with all that was measured.
    let eval = work.path("eval.jsonl");
    let flags_eval = [&flags[..2], &["--eval", eval.to_str().unwrap(), "--save-every", "40"]].concat();
    work.train("qrm", "qwen3", "end", &flags_eval);
    let config = || std::fs::read_to_string(work.path("end/model/qrm_config.json")).unwrap();
    let before = config();
    std::fs::remove_dir_all(work.path("end/model")).unwrap();
    work.train("qrm", "qwen3", "end", &[&flags_eval[..], &["--resume"]].concat());
    assert_eq!(config(), before);
    // Another run's state is refused, whether the flags, the checkpoint or the data are others; and by a run of its own.
    let refused = |base: &str, flags: &[&str], why: &str| {
        let refused = work.command("qrm", base, "cut", flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && stderr.contains(why), "{stderr}");
    };
    refused("qwen3", &[&flags[..8], &["--seed", "6", "--resume"]].concat(), "another run");
    refused("qwen2", &[&flags[..], &["--resume"]].concat(), "another run");
    refused("qwen3", &flags, "--resume");
    let rows = std::fs::read_to_string(work.path("train.jsonl")).unwrap();
    let others: String = rows.lines().rev().map(|row| format!("{row}\n")).collect();
    std::fs::write(work.path("train.jsonl"), others).unwrap();
    refused("qwen3", &[&flags[..], &["--resume"]].concat(), "another run");
}

#[test]
fn numbers_that_run_away_stop_the_run() {
    let work = Work::new();
    let flags =
        ["--steps", "30", "--lr", "1e20", "--max-grad-norm", "0", "--save-every", "1", "--warmup", "0"];
    let output = work.command("qrm", "qwen2", "out", &flags).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("stopped at step") && stderr.contains("--resume"), "{stderr}");
    assert!(!work.path("out/model").exists());
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let work = Work::new();
    // Files may hold 200 KiB: the weights do not fit, and the write fails as on a full disk.
    let trainer = work.command("qrm", "qwen2", "out", &["--steps", "2", "--save-every", "1"]);
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]);
    let output = shell.arg(trainer.get_program()).args(trainer.get_args()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("step-1"), "{stderr}");
    assert!(!work.path("out/model").exists());
    assert_eq!(std::fs::read_dir(work.path("out/checkpoints")).unwrap().count(), 0);
}

#[test]
fn bad_rows_are_named_before_training() {
    let work = Work::new();
    let good = pairs(2);
    for (bad, says) in [
        ("{\"prompt\": [1], \"chosen\": [2]}", "rejected is missing"),
        ("{\"prompt\": [], \"chosen\": [2], \"rejected\": [3]}", "the prompt is empty"),
        ("{\"chosen\": [2], \"rejected\": [3]}", "prompt and messages"),
        ("{\"prompt\": [1], \"chosen\": [2], \"rejected\": [2]}", "the same"),
        ("{\"prompt\": [1], \"chosen\": [2], \"rejected\": [9999]}", "9999"),
        ("{\"prompt\": [1], \"chosen\": [2], \"rejected\": \"\"}", "rejected is empty"),
        ("{\"prompt\": [1], \"chosen\": 7, \"rejected\": [3]}", "untagged"),
        ("{\"prompt\": [1], \"chosen\": \"a\", \"rejected\": \"b\", \"first_wrong\": 2}", "first_wrong"),
        ("{", "EOF"),
    ] {
        std::fs::write(work.path("train.jsonl"), format!("{good}\n{bad}\n{bad}\n")).unwrap();
        let output = work.command("qrm", "qwen2", "out", &[]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("2 bad rows") && stderr.contains("line 4: "), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert!(!work.path("out").exists());
    }
}
