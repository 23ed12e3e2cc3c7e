//! Rewards that take more than a token's scores: step ends, a reference policy.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::fixture;
use qrm_model::reward::HeadKind;
use qrm_model::{ModelError, RewardKind, RewardModel, Trajectory};
use safetensors::SafeTensors;
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

/// SentencePiece has a space in the word that follows it, and spells rare characters byte by byte.
#[test]
fn separators_may_have_spaces_and_any_character() {
    let dir = tempfile::tempdir().unwrap();
    copy("qwen2-token-classification", dir.path());
    let tokens = ["<unk>", "▁One", "▁Step", "▁two", "<0xD0>", "<0xBA>", "ки"];
    let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let sequence = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    for decoder in [sequence, metaspace] {
        let model = json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true});
        let tokenizer = json!({"version": "1.0", "model": model, "decoder": decoder, "added_tokens": []});
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (separator, ids, ends) in [
            (" Step", [1, 2, 3, 2, 1], [1, 3, 4]),
            ("к", [4, 5, 1, 6, 3], [1, 3, 4]),
            ("e S", [1, 2, 1, 2, 3], [1, 3, 4]),
        ] {
            let config = json!({"reward_model": "step", "step_separator": separator});
            fs::write(dir.path().join("qrm_config.json"), config.to_string()).unwrap();
            let model = RewardModel::load(dir.path()).unwrap();
            let one = Trajectory { prompt_ids: [1].into(), response_ids: ids.into() };
            let rewards = model.score(&[one]).unwrap().scores[0].rewards(RewardKind::Step);
            let found: Vec<usize> = (0..ids.len()).filter(|t| rewards[*t] != 0.0).collect();
            assert_eq!(found, ends, "{separator:?}");
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

/// A token that is nobody's target takes part in every logsumexp: of the policy, and of the reference.
#[test]
fn a_broken_logit_anywhere_in_the_vocabulary_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    copy("qwen2", dir.path());
    copy("qwen2", &dir.path().join("reference"));
    let break_row_7 = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let head = metadata.info("lm_head.weight").unwrap();
        let (from, to) = head.data_offsets;
        let row = (to - from) / head.shape[0];
        bytes[header + 8 + from + 7 * row..][..4].fill(0xff); // not a number, in f32 and in bf16
        fs::write(path, bytes).unwrap();
    };
    let refused = || {
        let model = RewardModel::load(dir.path()).unwrap();
        let batch = batch(&model);
        assert!(batch.iter().all(|t| !t.response_ids.contains(&7)));
        matches!(model.score(&batch), Err(ModelError::NotFinite { index: 0 }))
    };
    assert!(!refused());
    break_row_7(&dir.path().join("reference/model.safetensors"));
    let dpo = json!({"reward_model": "dpo", "beta": 0.5}).to_string();
    fs::write(dir.path().join("qrm_config.json"), dpo).unwrap();
    assert!(refused(), "the reference's");
    fs::remove_file(dir.path().join("qrm_config.json")).unwrap();
    assert!(!refused());
    break_row_7(&dir.path().join("model.safetensors"));
    assert!(refused());
}
