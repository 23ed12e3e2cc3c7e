//! Models whose weights are held in less than f32, against the same in f32.

mod common;

use std::path::PathBuf;

use common::{FIXTURES, fixture};
use qrm_kernels::{Device, Float, Int8, Weights};
use qrm_model::{Placement, RewardKind, RewardModel, Trajectory};

fn load(name: &str, weights: Weights) -> RewardModel {
    RewardModel::load_on(&fixture(name), &Placement::on(Device::cpu(weights))).unwrap()
}

fn batch(model: &RewardModel) -> Vec<Trajectory> {
    let ids = |n: usize, salt: usize| -> Vec<u32> {
        (0..n).map(|t| ((t * 31 + salt * 17) % model.vocab_size()) as u32).collect()
    };
    let one = |i: usize| Trajectory {
        prompt_ids: ids(5 + i % 3 * 4, i / 2).into(),
        response_ids: ids(1 + i * 5, i + 9).into(),
    };
    (0..6).map(one).collect()
}

#[test]
fn every_type_stays_near_f32_and_keeps_its_bits() {
    // Means over all tokens: random weights of this size have a few tokens that any rounding moves much further.
    let types = [
        (Weights { dtype: Float::F16, int8: Int8::Nothing }, 1e-3),
        (Weights { dtype: Float::BF16, int8: Int8::Nothing }, 8e-3),
        (Weights { dtype: Float::F32, int8: Int8::Layers }, 3e-2),
        (Weights { dtype: Float::F32, int8: Int8::All }, 3e-2),
    ];
    for name in FIXTURES {
        let whole = load(name, Weights::default());
        let batch = batch(&whole);
        let kind = if whole.head().is_vocabulary() { RewardKind::Advantage } else { RewardKind::Logit };
        let want = whole.score(&batch).unwrap();
        let scale = want.scores.iter().flat_map(|s| s.rewards(kind)).fold(0.0f32, |max, r| max.max(r.abs()));
        for (weights, tolerance) in types {
            let model = load(name, weights);
            let together = model.score(&batch).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            assert_eq!(pool.install(|| model.score(&batch)).unwrap().scores, together.scores, "{name}");
            let mut off = Vec::new();
            for (i, scores) in together.scores.iter().enumerate() {
                let alone = model.score(&batch[i..=i]).unwrap();
                assert_eq!(&alone.scores[0], scores, "{name}, {weights:?}: the batch changed bits");
                let pairs = scores.rewards(kind).into_iter().zip(want.scores[i].rewards(kind));
                off.extend(pairs.map(|(got, want)| (got - want).abs() / scale));
            }
            let mean = off.iter().sum::<f32>() / off.len() as f32;
            assert!(mean > 0.0 && mean <= tolerance, "{name}, {weights:?}: off by {mean} of {scale}");
        }
    }
}

/// The file serves whoever wants int8, and only them.
#[test]
fn a_cache_does_not_decide_what_weights_are_held_in() {
    let directory = tempfile::tempdir().unwrap();
    let of = |int8| Weights { dtype: Float::F32, int8 };
    let load = |name: &str, int8| {
        let placement = Placement::on(Device::cpu(of(int8)));
        let kept = placement.with_int8_cache(Some(directory.path().into()));
        RewardModel::load_on(&fixture(name), &kept).unwrap()
    };
    let length = || -> u64 {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    for name in ["llama-tied", "qwen2"] {
        let before = length();
        load(name, Int8::Nothing);
        assert_eq!(length(), before, "nothing to keep");
        load(name, Int8::Layers);
        let layers = length();
        load(name, Int8::All);
        let all = length();
        assert!(before < layers && layers < all, "the head beside the layers");
        for int8 in [Int8::Layers, Int8::All, Int8::Nothing] {
            let kept = load(name, int8);
            let batch = batch(&kept);
            let fresh = RewardModel::load_on(&fixture(name), &Placement::on(Device::cpu(of(int8)))).unwrap();
            let (got, want) = (kept.score(&batch).unwrap().scores, fresh.score(&batch).unwrap().scores);
            assert_eq!(got, want, "{name}, {int8:?}");
        }
        assert_eq!(length(), all, "the file stays as it is");
    }
}

#[test]
fn what_was_quantised_once_is_read_the_next_time() {
    let directory = tempfile::tempdir().unwrap();
    let all = Device::cpu(Weights { dtype: Float::F32, int8: Int8::All });
    let placement = Placement::on(all).with_int8_cache(Some(directory.path().join("int8")));
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory.path().join("int8")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    for (i, name) in ["llama-tied", "qwen2", "qwen2-token-classification"].into_iter().enumerate() {
        let load = || RewardModel::load_on(&fixture(name), &placement);
        let first = load().unwrap();
        let written = files().iter().map(|file| std::fs::metadata(file).unwrap().modified().unwrap()).max();
        let again = load().unwrap();
        assert_eq!(files().len(), i + 1, "a file for each checkpoint, nothing unfinished");
        let now = files().iter().map(|file| std::fs::metadata(file).unwrap().modified().unwrap()).max();
        assert_eq!(written, now, "written once");
        assert_eq!(first.parameters(), again.parameters());
        let batch = batch(&first);
        assert_eq!(first.score(&batch).unwrap().scores, again.score(&batch).unwrap().scores);
    }
    for file in files() {
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    }
    let Err(error) = RewardModel::load_on(&fixture("qwen2"), &placement) else { panic!("a cut file") };
    assert!(error.to_string().contains("delete the file"), "{error}");
    std::fs::write(directory.path().join("file"), "").unwrap();
    let nowhere = placement.with_int8_cache(Some(directory.path().join("file/int8")));
    assert!(RewardModel::load_on(&fixture("qwen2"), &nowhere).is_err());
}
