//! `config.json` and `qrm_config.json`.

use std::fs;

use proptest::prelude::*;
use qrm_model::checkpoint::DecoderConfig;
use qrm_model::checkpoint::config::RopeScaling;
use qrm_model::reward::HeadKind;
use qrm_model::{Checkpoint, RewardModel};
use serde_json::{Value, json};

use crate::{copy, edit_config, fixture, refusal};

/// The settings of a fixture with some fields replaced.
fn config(name: &str, patch: Value) -> DecoderConfig {
    let dir = copy(name);
    edit_config(dir.path(), |config| config.extend(patch.as_object().unwrap().clone()));
    Checkpoint::open(dir.path()).unwrap().config().clone()
}

#[test]
fn heads_are_derived_from_the_architecture() {
    for (name, head) in [
        ("qwen2", HeadKind::QVocab),
        ("qwen2-token-classification", HeadKind::QScalar),
        ("llama-sequence-classification", HeadKind::Outcome),
    ] {
        assert_eq!(Checkpoint::open(&fixture(name)).unwrap().head(), head, "{name}");
    }
}

#[test]
fn qrm_config_decides_the_head() {
    let dir = copy("llama-sequence-classification");
    let write = |text: &str| fs::write(dir.path().join("qrm_config.json"), text).unwrap();
    write(r#"{"reward_model": "q_scalar", "beta": 0.2, "stats": {"mean": 1, "std": 2}, "more": []}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.head(), HeadKind::QScalar);
    let qrm = checkpoint.qrm_config();
    assert_eq!((qrm.reward_model, qrm.beta), (Some(HeadKind::QScalar), Some(0.2)));
    for (name, kind) in [("step", HeadKind::Step), ("dpo", HeadKind::Dpo), ("outcome", HeadKind::Outcome)] {
        write(&json!({ "reward_model": name }).to_string());
        assert_eq!(Checkpoint::open(dir.path()).unwrap().head(), kind);
    }
    write(r#"{"reward_model": "oracle"}"#);
    assert!(refusal(dir.path()).contains("oracle"));
}

#[test]
fn both_rope_layouts() {
    let new = Checkpoint::open(&fixture("llama3-rope")).unwrap().config().clone();
    let mut scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let mut old = json!({"rope_parameters": null, "rope_theta": 500000, "rope_scaling": scaling.clone()});
    assert_eq!(config("llama3-rope", old.clone()), new);
    let kind = scaling.as_object_mut().unwrap().remove("rope_type").unwrap();
    scaling["type"] = kind;
    old["rope_scaling"] = scaling;
    assert_eq!(config("llama3-rope", old), new);
    let linear = config("qwen2", json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(linear.rope_theta, 1e6);
}

#[test]
fn windows_per_layer() {
    let window = |name, patch| config(name, patch).sliding_window;
    assert_eq!(window("mistral-window", json!({})), [Some(16); 3]);
    assert_eq!(window("mistral-window", json!({"sliding_window": null})), [None; 3]);
    assert_eq!(window("qwen2", json!({"sliding_window": 8})), [None; 3]);
    let on = json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": null,
        "max_window_layers": 2});
    assert_eq!(window("qwen2", on), [None, None, Some(8)]);
    let types = json!({"use_sliding_window": true, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(window("qwen2", types), [Some(8), None, Some(8)]);
}

#[test]
fn ends_of_sequence() {
    for (value, ids) in
        [(json!(7), &[7][..]), (json!([9, 2, 509]), &[9, 2]), (json!([]), &[]), (json!(null), &[])]
    {
        assert_eq!(config("qwen2", json!({ "eos_token_id": value })).eos_token_ids, ids);
    }
}

#[test]
fn an_end_of_sequence_that_the_weights_lack_is_passed_over() {
    let dir = copy("qwen2");
    edit_config(dir.path(), |config| drop(config.insert("eos_token_id".into(), json!(7))));
    let path = |file: &str| dir.path().join(file);
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(path("tokenizer.json")).unwrap()).unwrap();
    let mut token = tokenizer["added_tokens"][2].clone();
    (token["id"], token["content"]) = (json!(509), json!("<|end|>"));
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    fs::write(path("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (token, id) in [("<|im_end|>", 2), ("<|end|>", 7)] {
        fs::write(path("tokenizer_config.json"), json!({ "eos_token": token }).to_string()).unwrap();
        let model = RewardModel::load(dir.path()).unwrap();
        assert!(model.text().eos_token_id().is_some());
        assert_eq!(model.eos_token_id(), Some(id), "{token}");
    }
}

#[test]
fn refusals_name_the_field() {
    for (patch, words) in [
        (json!({"model_type": "gpt2"}), "model_type \"gpt2\""),
        (json!({"model_type": null}), "model_type is missing"),
        (json!({"architectures": ["Qwen2ForRewardModel"]}), "Qwen2ForRewardModel"),
        (json!({"architectures": null}), "architectures is missing"),
        (json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}), "\"yarn\""),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling: factor is missing"),
        (json!({"rope_parameters": {"full_attention": {}}}), "per kind of layer"),
        (json!({"hidden_size": 0}), "hidden_size is 0"),
        (json!({"hidden_size": -4}), "hidden_size is -4"),
        (json!({"vocab_size": "509"}), "vocab_size"),
        (json!({"num_hidden_layers": u64::MAX}), "num_hidden_layers"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads 3"),
        (json!({"num_attention_heads": 5, "num_key_value_heads": 5}), "hidden_size 64"),
        (json!({"head_dim": 15}), "head_dim 15"),
        (json!({"head_dim": 16777216}), "head_dim 16777216 is too large"),
        (json!({"num_attention_heads": 2, "head_dim": 1026}), "head_dim 1026 is too large"),
        (json!({"num_attention_heads": 2, "hidden_size": 4096}), "head_dim 2048 is too large"),
        (json!({"num_attention_heads": 16777216, "head_dim": 16}), "x head_dim 16 is too large"),
        (json!({"sliding_window": 0, "use_sliding_window": true}), "sliding_window is 0"),
        (json!({"use_sliding_window": true, "sliding_window": 4, "layer_types": ["x"]}), "layer_types"),
        (json!({"rope_theta": 0}), "rope_theta is 0"),
        (json!({"eos_token_id": 509}), "eos_token_id 509"),
        (json!({"eos_token_id": [-1]}), "eos_token_id -1"),
        (json!({"quantization_config": {}}), "quantization_config"),
    ] {
        let dir = copy("qwen2");
        edit_config(dir.path(), |config| config.extend(patch.as_object().unwrap().clone()));
        let message = refusal(dir.path());
        assert!(message.starts_with("config.json: ") && message.contains(words), "{patch}: {message}");
    }
    let dir = copy("qwen2-token-classification");
    edit_config(dir.path(), |config| {
        config.insert("id2label".into(), json!({"0": "a", "1": "b"}));
    });
    assert!(refusal(dir.path()).contains("2 labels"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a field holds, opening answers.
    #[test]
    fn hostile_values_never_panic(field in 0usize..100, value in prop_oneof![
        Just(json!(null)), Just(json!(0)), Just(json!(-1)), Just(json!(1e300)), Just(json!(u64::MAX)),
        Just(json!([])), Just(json!({})), Just(json!("")), Just(json!(true)), any::<u32>().prop_map(|n| json!(n)),
    ]) {
        let dir = copy("qwen3");
        edit_config(dir.path(), |config| {
            let name = config.keys().nth(field % config.len()).unwrap().clone();
            config.insert(name, value);
        });
        let _ = Checkpoint::open(dir.path());
    }
}
