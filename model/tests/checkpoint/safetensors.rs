//! Safetensors: types, shards, and every way a file can be wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{TensorView, serialize_to_file};
use ::safetensors::{Dtype, SafeTensors};
use half::{bf16, f16};
use qrm_model::{Checkpoint, RewardModel};
use serde_json::json;

use crate::{copy, edit_config, fixture, refusal, values};

const NORM: &str = "model.norm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(dir: &Path) -> Stored {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(entry).collect()
}

fn write(path: &Path, tensors: &Stored) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// A copy of a fixture with its tensors edited, and why it does not load.
fn spoiled(edit: impl FnOnce(&mut Stored)) -> String {
    let dir = copy("qwen2");
    let mut tensors = read(dir.path());
    edit(&mut tensors);
    write(&dir.path().join("model.safetensors"), &tensors);
    RewardModel::load(dir.path()).err().expect("it loaded").to_string()
}

#[test]
fn a_file_that_goes_on_after_its_tensors_is_refused() {
    let dir = copy("qwen2");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, [&bytes[..], &bytes[..1000]].concat()).unwrap();
    assert!(refusal(dir.path()).contains("1000 bytes after the last tensor"));
}

#[test]
fn wrong_tensors_are_named() {
    let lost = spoiled(|t| drop(t.remove(NORM)));
    assert!(lost.contains(NORM) && lost.contains("missing"), "{lost}");
    let extra = spoiled(|t| {
        for name in ["first.extra", "second.extra", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
            t.insert(name.into(), (Dtype::F32, vec![1], vec![0; 4]));
        }
    });
    assert!(extra.ends_with("first.extra, second.extra"), "{extra}");
    let shape = spoiled(|t| t.get_mut(NORM).unwrap().1 = vec![1, 64]);
    assert!(shape.contains(NORM) && shape.contains("[1, 64]") && shape.contains("[64]"), "{shape}");
    let dtype = spoiled(|t| drop(t.insert(NORM.into(), (Dtype::F64, vec![64], vec![0; 512]))));
    assert!(dtype.contains(NORM) && dtype.contains("F64"), "{dtype}");
}

#[test]
fn every_truncation_is_refused() {
    let dir = copy("qwen2");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 100, 4000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains("model.safetensors: truncated"), "{length}: {message}");
    }
    assert!(refusal(dir.path()).contains(".weight ends at byte"));
    fs::write(&path, [0xff; 64]).unwrap();
    assert!(refusal(dir.path()).contains("not safetensors"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(dir.path()).contains("neither"));
    assert!(refusal(&dir.path().join("nowhere")).contains("config.json"));
}

#[test]
fn half_types_widen_exactly() {
    let dir = copy("qwen2");
    let mut tensors = read(dir.path());
    let original = values(&mut Checkpoint::open(dir.path()).unwrap(), EMBEDDING, &[509, 64]);
    for (dtype, name) in [(Dtype::F16, "F16"), (Dtype::BF16, "BF16")] {
        let narrow = |x: &f32| match dtype {
            Dtype::F16 => (f16::from_f32(*x).to_le_bytes(), f16::from_f32(*x).to_f32()),
            _ => (bf16::from_f32(*x).to_le_bytes(), bf16::from_f32(*x).to_f32()),
        };
        // Numbers that are none are the model's business, not the reader's.
        let mut wide = original.clone();
        wide[0] = f32::INFINITY;
        let (bytes, want): (Vec<_>, Vec<_>) = wide.iter().map(narrow).unzip();
        for (kind, shape, data) in tensors.values_mut() {
            (*kind, *data) = (dtype, vec![0; shape.iter().product::<usize>() * 2]);
        }
        tensors.insert(EMBEDDING.into(), (dtype, vec![509, 64], bytes.concat()));
        write(&dir.path().join("model.safetensors"), &tensors);
        let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.stored_dtype(), name);
        assert_eq!(values(&mut checkpoint, EMBEDDING, &[509, 64]), want);
        assert_eq!(checkpoint.parameters(), 509 * 64);
        assert!(!checkpoint.has(EMBEDDING));
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = copy("qwen2");
    let tensors = read(dir.path());
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut shards = [Stored::new(), Stored::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-{}.safetensors", i % 2)));
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&dir.path().join(format!("model-{i}.safetensors")), shard);
    }
    let index = dir.path().join("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<_, _>| {
        fs::write(&index, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()).unwrap();
    };
    write_index(&map);
    assert!(RewardModel::load(dir.path()).is_ok());
    let mut whole = Checkpoint::open(&fixture("qwen2")).unwrap();
    let mut parts = Checkpoint::open(dir.path()).unwrap();
    for (name, shape) in [(NORM, &[64][..]), (EMBEDDING, &[509, 64])] {
        assert_eq!(values(&mut whole, name, shape), values(&mut parts, name, shape));
    }

    let moved = map[NORM].clone();
    map.insert(
        NORM.into(),
        json!(if moved == "model-0.safetensors" { "model-1.safetensors" } else { "model-0.safetensors" }),
    );
    write_index(&map);
    assert!(refusal(dir.path()).contains(NORM));
    map.insert(NORM.into(), json!("../model-0.safetensors"));
    write_index(&map);
    assert!(refusal(dir.path()).contains("not the name of a file"));
    map.insert(NORM.into(), moved);
    write_index(&map);
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("model-1.safetensors"));
}

#[test]
fn a_tied_model_may_carry_its_lm_head() {
    let dir = copy("llama-tied");
    let mut tensors = read(dir.path());
    tensors.insert("lm_head.weight".into(), tensors[EMBEDDING].clone());
    write(&dir.path().join("model.safetensors"), &tensors);
    assert!(RewardModel::load(dir.path()).is_ok());
    edit_config(dir.path(), |config| drop(config.insert("tie_word_embeddings".into(), json!(false))));
    assert!(RewardModel::load(dir.path()).is_ok());
}
