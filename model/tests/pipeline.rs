//! A decoder whose layers are in parts: the same bits as in one.

mod common;

use common::fixture;
use qrm_kernels::Device;
use qrm_model::{ModelError, Placement, PrefixCache, RewardModel, Trajectory};

fn split(name: &str, parts: usize) -> RewardModel {
    RewardModel::load_on(&fixture(name), &Placement::split(vec![Device::default(); parts])).unwrap()
}

fn ids(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (seed + i * i * 7 + i * seed) % 90).collect()
}

/// Groups of answers to prompts of many lengths, some of which begin alike.
fn batch(groups: u32) -> Vec<Trajectory> {
    let group = |g: u32| {
        let prompt = [ids(1, g as usize * 5 % 40), ids(g, 1 + g as usize % 20)].concat();
        (0..1 + g % 4).map(move |r| Trajectory {
            prompt_ids: prompt.as_slice().into(),
            response_ids: ids(g * 4 + r, 1 + (g + r) as usize % 13).into(),
        })
    };
    (0..groups).flat_map(group).collect()
}

#[test]
fn layers_over_two_devices_are_as_over_one() {
    for name in
        ["llama-tied", "llama3-rope", "mistral-window", "qwen2", "qwen3", "qwen2-token-classification"]
    {
        let (whole, halves) = (RewardModel::load(&fixture(name)).unwrap(), split(name, 2));
        let cache = PrefixCache::new(&halves, 1 << 20).unwrap();
        for groups in [0, 1, 2, 30] {
            let batch = batch(groups);
            let scores = whole.score(&batch).unwrap().scores;
            assert_eq!(halves.score(&batch).unwrap().scores, scores, "{name}, {groups} groups");
            for _ in 0..2 {
                assert_eq!(halves.score_cached(&batch, &cache).unwrap().scores, scores, "{name}, cached");
            }
        }
        assert!(cache.stats().hit_tokens > 0);
    }
}

#[test]
fn more_parts_than_layers_are_parts_without_any() {
    let batch = batch(9);
    let scores = RewardModel::load(&fixture("qwen2")).unwrap().score(&batch).unwrap().scores;
    assert_eq!(split("qwen2", 5).score(&batch).unwrap().scores, scores);
}

#[test]
fn an_error_names_its_place_in_the_whole_batch() {
    let mut batch = batch(30);
    let wrong = batch.len() - 2;
    batch[wrong].response_ids = [u32::MAX].into();
    let error = split("qwen2", 2).score(&batch).unwrap_err();
    assert!(matches!(error, ModelError::Trajectory { index, .. } if index == wrong), "{error}");
}
