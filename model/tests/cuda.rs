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
        // f32 as the contract has it; of the others the largest and the mean difference, in parts of the largest result.
        // PyTorch's own bf16 is off by up to 6 % and 0.5 % here, its f16 by 1 % and 0.06 %.
        let plain = |dtype| Weights { dtype, int8: Int8::Nothing };
        for (weights, most, mean) in [
            (plain(Float::F32), 1e-4, 1e-5),
            (plain(Float::F16), 0.015, 0.001),
            (plain(Float::BF16), 0.08, 0.006),
            (Weights { dtype: Float::BF16, int8: Int8::Layers }, 0.15, 0.015),
        ] {
            let placement = Placement::on(Device::Cuda(gpu.clone(), weights));
            let model = RewardModel::load_on(&fixture(name), &placement).unwrap();
            let cache = PrefixCache::new(&model, 1 << 20).unwrap();
            // What was cached is read from the device's pools.
            let cached = || model.score_cached(&batch, &cache).unwrap();
            for there in [model.score(&batch).unwrap(), cached(), cached()] {
                let (found_most, found_mean) = difference(&all(&cpu), &all(&there));
                eprintln!("{name}, {weights}: {found_most:.5} at most, {found_mean:.5} in the mean");
                assert!(found_most <= most && found_mean <= mean, "{name}, {weights}");
            }
            assert!(cache.stats().hit_tokens > 0);
        }
    }
}

/// The largest and the mean difference, in parts of the largest value.
fn difference(expected: &[f32], found: &[f32]) -> (f32, f32) {
    assert_eq!(expected.len(), found.len());
    let scale = expected.iter().fold(1.0f32, |scale, x| scale.max(x.abs()));
    let differences: Vec<f32> = expected.iter().zip(found).map(|(e, f)| (e - f).abs() / scale).collect();
    assert!(differences.iter().all(|d| d.is_finite()));
    (differences.iter().copied().fold(0.0, f32::max), differences.iter().sum::<f32>() / expected.len() as f32)
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
