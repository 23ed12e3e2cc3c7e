//! Whole models on a GPU against the CPU. Without a GPU these tests say so and pass.
#![cfg(feature = "cuda")]

mod common;

use common::fixture;
use qrm_kernels::cuda::Gpu;
use qrm_kernels::{Device, Float, Int8, Weights};
use qrm_model::{BatchScores, Placement, PrefixCache, RewardModel, Trajectory};

const FIXTURES: [&str; 7] = [
    "llama-tied",
    "llama3-rope",
    "mistral-window",
    "qwen2",
    "qwen2-peaked",
    "qwen3",
    "qwen2-token-classification",
];

fn ids(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (seed + i * i * 7 + i * seed) % 90).collect()
}

fn batch() -> Vec<Trajectory> {
    let group = |g: u32| {
        let prompt = [ids(1, g as usize * 5 % 40), ids(g, 1 + g as usize % 20)].concat();
        (0..1 + g % 4).map(move |r| Trajectory {
            prompt_ids: prompt.as_slice().into(),
            response_ids: ids(g * 4 + r, 1 + (g + r) as usize % 13).into(),
        })
    };
    (0..20).flat_map(group).collect()
}

/// Heads narrower than the tensor cores take, wider, grouped, windows: the fixtures have them all.
#[test]
fn as_on_the_cpu() {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let batch = batch();
    for name in FIXTURES {
        let cpu = RewardModel::load(&fixture(name)).unwrap().score(&batch).unwrap();
        // f32 as the contract has it; the others within 3e-2 of the results' scale.
        let plain = |dtype| Weights { dtype, int8: Int8::Nothing };
        for (weights, absolute, of_scale) in [
            (plain(Float::F32), 2e-4, 1e-4),
            (plain(Float::F16), 0.0, 3e-2),
            (plain(Float::BF16), 0.0, 3e-2),
            (Weights { dtype: Float::BF16, int8: Int8::Layers }, 0.0, 6e-2),
        ] {
            let placement = Placement::on(Device::Cuda(gpu.clone(), weights));
            let model = RewardModel::load_on(&fixture(name), &placement).unwrap();
            let cache = PrefixCache::new(&model, 1 << 20).unwrap();
            // What was cached is read from the device's pools.
            let cached = || model.score_cached(&batch, &cache).unwrap();
            for there in [model.score(&batch).unwrap(), cached(), cached()] {
                let (expected, found) = (all(&cpu), all(&there));
                assert_eq!(expected.len(), found.len());
                let scale = expected.iter().fold(1.0f32, |scale, x| scale.max(x.abs()));
                for (e, f) in expected.iter().zip(&found) {
                    let bound = f32::max(absolute, of_scale * scale);
                    assert!((e - f).abs() <= bound, "{name}, {weights:?}: {f}, expected {e} within {bound}");
                }
            }
            assert!(cache.stats().hit_tokens > 0);
        }
    }
}

fn all(scores: &BatchScores) -> Vec<f32> {
    let each = scores.scores.iter();
    each.flat_map(|s| [&s.logit, &s.logsumexp, &s.max, &s.entropy].into_iter().flatten().copied()).collect()
}

/// As many parts as there are GPUs.
#[test]
fn split_over_all_gpus() {
    let count = match qrm_kernels::cuda::count() {
        Ok(count) if count > 1 => count,
        Ok(count) => return eprintln!("skipped: {count} GPU"),
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let batch = batch();
    let exact = Weights { dtype: Float::F32, int8: Int8::Nothing };
    let gpus: Vec<Device> = (0..count).map(|i| Device::Cuda(Gpu::open(i).unwrap(), exact)).collect();
    let whole = RewardModel::load_on(&fixture("qwen2"), &Placement::on(gpus[0].clone())).unwrap();
    let parts = RewardModel::load_on(&fixture("qwen2"), &Placement::split(gpus)).unwrap();
    for (a, b) in whole.score(&batch).unwrap().scores.iter().zip(&parts.score(&batch).unwrap().scores) {
        assert!(a.logit.iter().zip(&b.logit).all(|(a, b)| (a - b).abs() < 2e-4));
    }
}
