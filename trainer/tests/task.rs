//! The task: its answers, its mistakes, its splits.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use qrm_model::RewardModel;
use qrm_trainer::task::problem::{Generator, Problem, Split};
use qrm_trainer::task::slips::{Slip, slip};
use qrm_trainer::task::verifier::{Verdict, final_answer, verify};
use qrm_trainer::task::worked;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

fn problems(split: Split, n: usize) -> Vec<Problem> {
    Generator::new(split, 1..=4, 7).take(n).collect()
}

/// The lines of an answer without the words before the numbers.
fn equations(answer: &str) -> impl Iterator<Item = &str> {
    let lines = answer.lines().filter(|l| !l.starts_with('#'));
    lines.map(|line| line.trim_start_matches(|c: char| !c.is_ascii_digit()))
}

#[test]
fn worked_answers_are_right_to_the_last_byte() {
    let mut rng = StdRng::seed_from_u64(0);
    for problem in problems(Split::Train, 2000) {
        let answer = worked::answer(&problem, &mut rng);
        assert_eq!(verify(&problem, &answer), Verdict::Right, "{answer}");
        assert_eq!(final_answer(&answer), Some(problem.result()));
        assert_eq!(verify(&problem, &worked::plain(&problem)), Verdict::Right);
        // Every equation holds as it is written.
        for line in equations(&answer) {
            let n: Vec<i64> =
                line.split([' ', '=', '+', '-', '*', '/']).filter_map(|n| n.parse().ok()).collect();
            let holds = match line.split(' ').nth(1).unwrap() {
                "+" => n[0] + n[1] == n[2],
                "-" => n[0] - n[1] == n[2],
                "*" => n[0] * n[1] == n[2],
                _ => n[2] * n[1] == n[0],
            };
            assert!(holds, "{line}");
        }
        // An answer that stops early is wrong where it stops; one that goes on, where it goes on.
        let (cut, _) = answer.split_at(answer.len() / 2);
        assert_eq!(verify(&problem, cut), Verdict::Wrong(cut.len()));
        assert_eq!(verify(&problem, &format!("{answer}0")), Verdict::Wrong(answer.len()));
        // Every changed byte is found, unless the line it makes is as good.
        for at in (0..answer.len()).step_by(5) {
            let mut bytes = answer.clone().into_bytes();
            bytes[at] = b'x';
            assert_eq!(verify(&problem, std::str::from_utf8(&bytes).unwrap()), Verdict::Wrong(at));
        }
    }
}

#[test]
fn what_is_as_good_is_right() {
    let mut rng = StdRng::seed_from_u64(0);
    let (mut firsts, mut leads) = (HashSet::new(), HashSet::new());
    let problem = &problems(Split::Train, 500).into_iter().find(|p| p.steps.len() == 6).unwrap();
    for _ in 0..400 {
        let answer = worked::answer(problem, &mut rng);
        assert_eq!(verify(problem, &answer), Verdict::Right, "{answer}");
        let (lead, first) = answer.split_at(answer.find(|c: char| c.is_ascii_digit()).unwrap());
        firsts.insert(first.lines().next().unwrap().to_owned());
        leads.insert(lead.to_owned());
        // Not in words of its own, and the last step not before those it needs.
        assert_eq!(verify(problem, &format!("Sum: {answer}")), Verdict::Wrong(1));
        let last = equations(&answer).last().unwrap();
        let Verdict::Wrong(at) = verify(problem, &format!("{last}\n{answer}")) else { panic!("{answer}") };
        assert!(at < last.len());
    }
    // Both ways round, and more than one step to begin with.
    assert!(firsts.len() >= 3, "{firsts:?}");
    assert_eq!(leads.len(), 16);
}

#[test]
fn slips_go_wrong_once_and_go_on() {
    let mut rng = StdRng::seed_from_u64(1);
    for kind in Slip::ALL {
        let mut made = 0;
        for problem in problems(Split::Validation, 1500) {
            let Some(text) = slip(&problem, kind, &mut rng) else { continue };
            made += 1;
            let Verdict::Wrong(at) = verify(&problem, &text) else { panic!("{text}") };
            // What comes before could still have become right.
            assert_eq!(verify(&problem, &text[..at]), Verdict::Wrong(at), "{text}");
            assert!(final_answer(&text).is_some());
        }
        assert!(made > 200, "{kind:?}: {made}");
    }
}

#[test]
fn splits_share_neither_stories_nor_numbers() {
    let key = |p: &Problem| {
        let digits = |c: char| c.is_ascii_digit();
        let numbers: Vec<String> =
            p.question.split(|c| !digits(c)).filter(|n| !n.is_empty()).map(str::to_owned).collect();
        numbers.join(" ")
    };
    let all: Vec<HashSet<String>> = [Split::Train, Split::Validation, Split::Test]
        .into_iter()
        .map(|split| problems(split, 1500).iter().filter(|p| p.steps.len() > 2).map(key).collect())
        .collect();
    assert!(all[0].is_disjoint(&all[1]) && all[0].is_disjoint(&all[2]) && all[1].is_disjoint(&all[2]));
    // The same seed gives the same problems.
    assert_eq!(problems(Split::Test, 50), problems(Split::Test, 50));
}

fn trainer(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_qrm-trainer")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a policy that has barely learned writes: chosen answers are right, rejected ones wrong where it is said.
fn answers_are_sampled_and_told_apart(model: &str, path: &dyn Fn(&str) -> String) {
    let sample = |rows: &str, name: &str| {
        let sampled = ["task", "sample", "--model", model, "--problems", "30", "--samples", "8", "--worked"];
        trainer(&[&sampled[..], &["--rows", rows, "--output", &path(name)]].concat());
        std::fs::read_to_string(path(name)).unwrap()
    };
    let pairs = sample("pairs", "sampled.jsonl");
    assert_eq!(pairs, sample("pairs", "again.jsonl"));
    let problems: HashMap<String, Problem> =
        Generator::new(Split::Train, 1..=4, 0).take(30).map(|p| (p.question.clone(), p)).collect();
    let problem = |row: &Value| problems[row["messages"][0]["content"].as_str().unwrap()].clone();
    let rows = |text: &str| text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>();
    let pairs = rows(&pairs);
    assert!(pairs.len() > 10, "{}", pairs.len());
    for row in pairs {
        let problem = problem(&row);
        assert_eq!(verify(&problem, row["chosen"].as_str().unwrap()), Verdict::Right);
        let wrong = Verdict::Wrong(row["first_wrong"].as_u64().unwrap() as usize);
        assert_eq!(verify(&problem, row["rejected"].as_str().unwrap()), wrong);
    }
    for row in rows(&sample("steps", "sampled-steps.jsonl")) {
        let is_right = verify(&problem(&row), row["response"].as_str().unwrap()) == Verdict::Right;
        let steps = row["steps"].as_array().unwrap();
        assert_eq!(steps.last().unwrap()["label"] == 1, is_right, "{row}");
    }
}

#[test]
fn a_model_starts_from_nothing_and_learns() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let (start, sft) = (path("start"), path("sft"));
    trainer(&["task", "start", "--hidden-size", "32", "--layers", "2", "--heads", "2", "--output", &start]);
    let again = Command::new(env!("CARGO_BIN_EXE_qrm-trainer"));
    let refused = |mut command: Command, args: &[&str], why: &str| {
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && stderr.contains(why), "{stderr}");
    };
    refused(again, &["task", "start", "--output", &start], "not empty");
    let none = Command::new(env!("CARGO_BIN_EXE_qrm-trainer"));
    let flags = ["--problems", "1", "--fewest-events", "5", "--output", &sft];
    refused(none, &[&["task", "sample", "--model", &start], &flags[..]].concat(), "no stories");
    let model = RewardModel::load(Path::new(&start)).unwrap();
    // Digits are tokens of their own, and any text survives.
    let text = "1234 + 5 = 1239\n";
    let tokens = model.text().encode(text, false).unwrap().offsets.into_iter().map(|[a, b]| &text[a..b]);
    assert!(tokens.into_iter().all(|t| t.len() == 1 || !t.contains(|c: char| c.is_ascii_digit())));
    let odd = "é 🙂 <|answer|> 42";
    assert_eq!(model.text().decode(&model.text().encode(odd, false).unwrap().ids, false).unwrap(), odd);
    assert_eq!(model.text().token(model.eos_token_id().unwrap()).as_deref(), Some("<|end|>"));

    for (rows, name) in [("answers", "answers.jsonl"), ("slips", "slips.jsonl"), ("steps", "steps.jsonl")] {
        trainer(&["task", "data", "--rows", rows, "--count", "64", "--output", &path(name)]);
        assert_eq!(std::fs::read_to_string(path(name)).unwrap().lines().count(), 64);
    }
    let common = ["--steps", "25", "--batch", "16", "--lr", "1e-2", "--output"];
    let answers = path("answers.jsonl");
    trainer(&[&["sft", "--model", &start, "--train", &answers], &common[..], &[&sft]].concat());
    let metrics = std::fs::read_to_string(Path::new(&sft).join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["train/loss"].as_f64().unwrap())
        .collect();
    assert!(losses[0] > 5.5 && losses[24] < 3.0, "{losses:?}");
    let model = format!("{sft}/model");
    answers_are_sampled_and_told_apart(&model, &path);
    let judged = Command::new(env!("CARGO_BIN_EXE_qrm-trainer"))
        .args(["evaluate", "--model", &model, "--data", &path("slips.jsonl"), "--noise", "0"])
        .output()
        .unwrap();
    let judged: Value = serde_json::from_slice(&judged.stdout).unwrap();
    let credit = |reading: &str| judged["readings"][reading]["credit_auc"].as_f64().unwrap();
    assert!((0.3..0.7).contains(&credit("noise")), "{judged}");
    assert!(["advantage", "logit"].iter().all(|reading| (0.0..=1.0).contains(&credit(reading))));
    for (kind, rows) in [("qrm", "slips.jsonl"), ("prm", "steps.jsonl")] {
        let (rows, output) = (path(rows), path(kind));
        trainer(&[kind, "--model", &model, "--train", &rows, "--steps", "2", "--output", &output]);
        assert!(RewardModel::load(&Path::new(&output).join("model")).is_ok());
    }
}
