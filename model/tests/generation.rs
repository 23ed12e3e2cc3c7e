//! Sampling: the tokens are those the model means, whatever is sampled beside them.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::fixture;
use qrm_model::generation::{Response, Sampling, Settings};
use qrm_model::{RewardModel, Trajectory};

fn model(name: &str) -> RewardModel {
    RewardModel::load(&fixture(name)).unwrap()
}

fn prompts() -> Vec<Arc<[u32]>> {
    vec![[5, 9, 30, 31].into(), [5, 9].into(), [5, 9, 30, 32, 70, 71, 72].into(), [80].into()]
}

fn settings(sampling: Sampling) -> Settings {
    Settings { sampling, max_new_tokens: 24, width: 64, seed: 3 }
}

/// Each answer as a trajectory with its prompt.
fn trajectories(prompts: &[Arc<[u32]>], responses: &[Vec<Response>]) -> Vec<Trajectory> {
    let pairs = prompts.iter().zip(responses);
    let all = pairs.flat_map(|(prompt, group)| {
        group
            .iter()
            .filter(|r| !r.response_ids.is_empty())
            .map(|r| Trajectory { prompt_ids: prompt.clone(), response_ids: r.response_ids.clone().into() })
    });
    all.collect()
}

#[test]
fn greedy_answers_are_the_likeliest_tokens() {
    for name in ["llama-tied", "llama3-rope", "mistral-window", "qwen2", "qwen3"] {
        let model = model(name);
        let responses = model.generate(&prompts(), 2, &settings(Sampling::ArgMax)).unwrap();
        assert!(responses.iter().all(|group| group.len() == 2 && group[0] == group[1]));
        let trajectories = trajectories(&prompts(), &responses);
        assert!(!trajectories.is_empty());
        for scores in model.score(&trajectories).unwrap().scores {
            for (logit, max) in scores.logit.iter().zip(&scores.max) {
                assert!((logit - max).abs() < 1e-5, "{name}: {logit} is not {max}");
            }
        }
    }
}

#[test]
fn answers_do_not_depend_on_what_is_beside_them() {
    let model = model("qwen3");
    let sampled = settings(Sampling::All { temperature: 1.0 });
    let together = model.generate(&prompts(), 3, &sampled).unwrap();
    let one_by_one = model.generate(&prompts(), 3, &Settings { width: 1, ..sampled.clone() }).unwrap();
    assert_eq!(together, one_by_one);
    let other = model.generate(&prompts(), 3, &Settings { seed: 4, ..sampled }).unwrap();
    assert_ne!(together, other);
}

/// Of tokens sampled at temperature 1, the mean of −log φ is the mean entropy.
#[test]
fn samples_follow_the_distribution() {
    let model = model("llama-tied");
    let sampled = settings(Sampling::All { temperature: 1.0 });
    let responses = model.generate(&prompts(), 100, &sampled).unwrap();
    let scores = model.score(&trajectories(&prompts(), &responses)).unwrap().scores;
    let tokens = scores.iter().map(|s| s.logit.len()).sum::<usize>() as f32;
    assert!(tokens > 5000.0);
    let surprise =
        scores.iter().flat_map(|s| s.logsumexp.iter().zip(&s.logit)).map(|(l, z)| l - z).sum::<f32>();
    let entropy = scores.iter().flat_map(|s| &s.entropy).sum::<f32>();
    assert!((surprise / entropy - 1.0).abs() < 0.02, "{} against {}", surprise / tokens, entropy / tokens);
}

#[test]
fn answers_end() {
    let model = model("llama-tied");
    let short = Settings { max_new_tokens: 1, ..settings(Sampling::ArgMax) };
    assert!(model.generate(&prompts(), 1, &short).unwrap().iter().all(|g| g[0].response_ids.len() <= 1));
    let none = Settings { max_new_tokens: 0, ..settings(Sampling::ArgMax) };
    assert!(model.generate(&prompts(), 1, &none).unwrap().iter().all(|g| g[0].response_ids.is_empty()));
    assert!(model.generate(&[], 4, &short).unwrap().is_empty());
    assert!(model.generate(&prompts(), 0, &short).unwrap().iter().all(Vec::is_empty));
    // The context ends an answer, and leaves no room for a prompt that fills it.
    let long = Settings { max_new_tokens: 10_000, ..settings(Sampling::All { temperature: 5.0 }) };
    let context = model.context_length();
    let full: Arc<[u32]> = vec![7; context - 3].into();
    let group = &model.generate(&[full], 4, &long).unwrap()[0];
    assert!(group.iter().all(|r| r.response_ids.len() <= 3) && group.iter().any(|r| r.end.is_none()));
    for bad in [vec![7; context], Vec::new(), vec![model.vocab_size() as u32]] {
        assert!(model.generate(&[bad.into()], 1, &short).is_err());
    }
    assert!(self::model("qwen2-token-classification").generate(&prompts(), 1, &short).is_err());
}

#[test]
fn any_of_several_ends_ends_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama-tied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let greedy = Settings { max_new_tokens: 4, ..settings(Sampling::ArgMax) };
    let first =
        |dir: &Path| RewardModel::load(dir).unwrap().generate(&prompts(), 1, &greedy).unwrap()[0][0].clone();
    let token = first(dir.path()).response_ids[0];
    let other = format!("{{\"eos_token_id\": [508, {token}]}}");
    std::fs::write(dir.path().join("generation_config.json"), other).unwrap();
    let ended = first(dir.path());
    assert_eq!((ended.response_ids, ended.end), (Vec::new(), Some(token)));
}
