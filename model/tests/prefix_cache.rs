//! The prefix cache: the same bits with less work, within its bounds.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::fixture;
use proptest::prelude::*;
use qrm_kernels::BLOCK;
use qrm_model::{PrefixCache, RewardModel, Trajectory};
use serde_json::json;

/// A policy with its reference beside it.
fn dpo(dir: &Path) -> RewardModel {
    for (name, to) in [("qwen2", dir.to_owned()), ("qwen2-peaked", dir.join("reference"))] {
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let config = json!({"reward_model": "dpo", "beta": 0.1, "reference": "reference"});
    std::fs::write(dir.join("qrm_config.json"), config.to_string()).unwrap();
    RewardModel::load(dir).unwrap()
}

fn ids(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (seed + i * i * 7 + i * seed) % 90).collect()
}

/// Prompts that share beginnings of many lengths, each with its responses.
fn batch() -> Vec<Trajectory> {
    let shared = ids(1, 40);
    let prompts: Vec<Arc<[u32]>> = [(40, 0), (40, 1), (33, 30), (32, 16), (17, 2), (0, 5), (0, 64)]
        .iter()
        .map(|(same, own)| [&shared[..*same], &ids(50 + *own as u32, *own)].concat().into())
        .collect();
    let group = |(i, prompt): (usize, &Arc<[u32]>)| {
        let prompt = prompt.clone();
        (0..2).map(move |r| Trajectory {
            prompt_ids: prompt.clone(),
            response_ids: ids((i * 2 + r) as u32, 3 + i + r).into(),
        })
    };
    prompts.iter().enumerate().flat_map(group).collect()
}

#[test]
fn a_cached_prefix_changes_no_bit() {
    let work = tempfile::tempdir().unwrap();
    let names = ["llama-tied", "llama3-rope", "mistral-window", "qwen3", "qwen2-token-classification"];
    let models = names.map(|name| RewardModel::load(&fixture(name)).unwrap());
    for model in models.into_iter().chain([dpo(work.path())]) {
        let batch = batch();
        let plain = model.score(&batch).unwrap();
        let cache = PrefixCache::new(&model, 1 << 20).unwrap();
        let first = model.score_cached(&batch, &cache).unwrap();
        assert_eq!(first.scores, plain.scores);
        assert_eq!(first.computed_tokens, plain.computed_tokens);
        assert_eq!(cache.stats().hit_tokens, 0);
        let second = model.score_cached(&batch, &cache).unwrap();
        assert_eq!(second.scores, plain.scores);
        let computed = |s: &qrm_model::BatchScores| s.computed_tokens.iter().sum::<usize>();
        let hits = cache.stats().hit_tokens as usize;
        // At most a block of each prompt is computed again.
        assert!(hits > 60 && computed(&second) + hits >= computed(&plain));
        assert!(computed(&second) < computed(&plain) - hits / 2);
        // Other prompts with the same beginning, in another order.
        let mut other = batch.clone();
        other.reverse();
        for t in &mut other {
            t.prompt_ids = t.prompt_ids.iter().copied().chain([7, 8]).collect();
        }
        assert_eq!(model.score_cached(&other, &cache).unwrap().scores, model.score(&other).unwrap().scores);
    }
}

#[test]
fn a_full_cache_drops_what_was_used_least_recently() {
    let model = RewardModel::load(&fixture("qwen3")).unwrap();
    let block = BLOCK * model.kv_bytes_per_token();
    let cache = PrefixCache::new(&model, 4 * block + block / 2).unwrap();
    let one = |seed: u32, blocks: usize| {
        vec![Trajectory { prompt_ids: ids(seed, blocks * BLOCK + 1).into(), response_ids: [5].into() }]
    };
    let hits = |batch: &[Trajectory]| {
        let before = cache.stats().hit_tokens;
        assert_eq!(model.score_cached(batch, &cache).unwrap().scores, model.score(batch).unwrap().scores);
        assert!(cache.stats().bytes <= 4 * block);
        (cache.stats().hit_tokens - before) as usize / BLOCK
    };
    let (a, b, c) = (one(1, 2), one(2, 2), one(3, 1));
    assert_eq!((hits(&a), hits(&b), hits(&a)), (0, 0, 2));
    assert_eq!(hits(&c), 0, "the end of b goes");
    assert_eq!((hits(&a), hits(&c)), (2, 1));
    assert_eq!(cache.stats().evicted_tokens as usize, BLOCK);
    assert_eq!(hits(&b), 1, "its beginning is still there");
    // Longer than the cache: its beginning is kept.
    let long = one(9, 7);
    assert_eq!(hits(&long), 0);
    assert_eq!(hits(&long), 4);
    // No room at all.
    let none = PrefixCache::new(&model, 0).unwrap();
    model.score_cached(&a, &none).unwrap();
    assert_eq!((none.stats().bytes, none.stats().hit_tokens), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Few distinct tokens and small caches: every kind of overlap, and blocks that come and go.
    #[test]
    fn any_batches_in_any_order(
        batches in prop::collection::vec(prop::collection::vec(
            (prop::collection::vec(0usize..3, 0..4), 1usize..20, prop::collection::vec(3u32..5, 1..4)), 1..6), 1..6),
        capacity in 0usize..8)
    {
        let model = RewardModel::load(&fixture("llama-tied")).unwrap();
        let cache = PrefixCache::new(&model, capacity * BLOCK * model.kv_bytes_per_token()).unwrap();
        for batch in batches {
            let batch: Vec<Trajectory> = batch.into_iter().map(|(blocks, rest, response)| Trajectory {
                prompt_ids: blocks.iter().flat_map(|b| [*b as u32 + 10; BLOCK]).chain(vec![9; rest]).collect(),
                response_ids: response.into(),
            }).collect();
            let scores = model.score_cached(&batch, &cache).unwrap().scores;
            prop_assert_eq!(scores, model.score(&batch).unwrap().scores);
            prop_assert!(cache.stats().bytes <= capacity * BLOCK * model.kv_bytes_per_token());
        }
    }
}
