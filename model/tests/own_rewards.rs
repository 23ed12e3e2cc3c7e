//! Rewards that take more than a token's scores: step ends, a reference policy.

mod common;

use std::fs;
use std::path::Path;

use common::fixture;
use qrm_model::reward::HeadKind;
use qrm_model::{RewardKind, RewardModel, Trajectory};
use serde_json::json;

fn copy(name: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn batch(model: &RewardModel) -> Vec<Trajectory> {
    let ids = |text: &str| model.text().encode(text, false).unwrap().ids;
    let answers = ["One and two.\nThree\nso 4", "44 + 5 = 49\n", "no step ends here"];
    answers.map(|a| Trajectory { prompt_ids: ids("Say").into(), response_ids: ids(a).into() }).to_vec()
}

#[test]
fn steps_have_their_scalar_at_their_last_token() {
    let dir = tempfile::tempdir().unwrap();
    copy("qwen2-token-classification", dir.path());
    let write = |config: serde_json::Value| {
        fs::write(dir.path().join("qrm_config.json"), config.to_string()).unwrap();
        RewardModel::load(dir.path()).unwrap()
    };
    for (config, tanh) in [
        (json!({"reward_model": "step"}), false),
        (json!({"reward_model": "step", "step_separator": "\n", "activation": "tanh"}), true),
    ] {
        let model = write(config);
        assert_eq!(model.head().default_reward(), RewardKind::Step);
        let batch = batch(&model);
        for (trajectory, scores) in batch.iter().zip(model.score(&batch).unwrap().scores) {
            let rewards = scores.rewards(RewardKind::Step);
            assert_eq!(rewards.len(), trajectory.response_ids.len());
            for (t, (reward, z)) in rewards.iter().zip(&scores.logit).enumerate() {
                let piece = model.text().decode(&trajectory.response_ids[t..=t], false).unwrap();
                let ends = piece.contains('\n') || t + 1 == rewards.len();
                let want = if tanh { z.tanh() } else { *z };
                assert_eq!(*reward, if ends { want } else { 0.0 }, "{piece:?}");
            }
        }
    }
}

#[test]
fn a_dpo_policy_is_read_against_its_reference() {
    let dir = tempfile::tempdir().unwrap();
    copy("qwen2", dir.path());
    let write = |config: serde_json::Value| {
        fs::write(dir.path().join("qrm_config.json"), config.to_string()).unwrap();
    };
    write(json!({"reward_model": "dpo", "beta": 0.5}));
    assert!(RewardModel::load(dir.path()).is_err()); // no reference
    copy("qwen2-peaked", &dir.path().join("reference"));
    let model = RewardModel::load(dir.path()).unwrap();
    assert_eq!(model.head(), HeadKind::Dpo);
    let [policy, reference] =
        ["qwen2", "qwen2-peaked"].map(|name| RewardModel::load(&fixture(name)).unwrap());
    let batch = batch(&model);
    let log_phi = |model: &RewardModel| model.score(&batch).unwrap().scores;
    for ((own, policy), reference) in log_phi(&model).iter().zip(log_phi(&policy)).zip(log_phi(&reference)) {
        let advantage = RewardKind::Advantage;
        let both = policy.rewards(advantage).into_iter().zip(reference.rewards(advantage));
        assert_eq!(own.rewards(RewardKind::Dpo), both.map(|(p, r)| 0.5 * (p - r)).collect::<Vec<_>>());
        assert_eq!(own.rewards(advantage), policy.rewards(advantage));
    }
    for broken in [
        json!({"reward_model": "dpo"}),
        json!({"reward_model": "dpo", "beta": 1, "reference": "../reference"}),
        json!({"reward_model": "dpo", "beta": 1, "reference": "nowhere"}),
    ] {
        write(broken);
        assert!(RewardModel::load(dir.path()).is_err());
    }
}
