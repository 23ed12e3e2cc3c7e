//! Weights that are held in less than f32: what they lose is their rounding, and nothing else.

mod common;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use common::{close, noise, tensor, values, wide};
use proptest::prelude::*;
use qrm_kernels::{
    Device, Float, Gates, Held, Panels, Rows, TokenReward, Weight, linear, reference, token_reward,
};

const HALVES: [Held; 2] = [Held::Float(Float::F16), Held::Float(Float::BF16)];

fn packed(weight: &Tensor, held: Held) -> Arc<Panels> {
    Arc::new(Panels::pack_rows(&[weight], held).unwrap())
}

/// What a multiply and the reward op make of rows.
fn through(x: &Tensor, panels: &Arc<Panels>, targets: &[u32]) -> (Vec<f32>, TokenReward) {
    let y = linear(x, &Weight::Packed(panels.clone()), None, None).unwrap();
    (values(&y), token_reward(x, panels, targets).unwrap())
}

fn largest(v: &[f32]) -> f64 {
    v.iter().fold(0.0, |max, x| f64::max(max, f64::from(x.abs())))
}

/// All rows of the weight that panels hold.
fn held_rows(panels: &Panels) -> Tensor {
    panels.gather(&(0..panels.out_dim() as u32).collect::<Vec<_>>()).unwrap()
}

#[test]
fn halves_give_the_bits_of_their_rounded_weights() {
    for held in HALVES {
        for (n, k, out) in [(1, 1, 1), (14, 64, 300), (113, 33, 70), (0, 8, 8)] {
            let (x, w) = (tensor(&noise(n * k, 1), n), tensor(&noise(out * k, 2), out));
            let x = x.reshape((n, k)).unwrap();
            let half = packed(&w, held);
            let rounded = held_rows(&half);
            let targets: Vec<u32> = (0..n).map(|i| (i * 7 % out) as u32).collect();
            let whole = packed(&rounded, Held::default());
            assert_eq!(through(&x, &half, &targets), through(&x, &whole, &targets), "{held:?}");
            assert_eq!(half.bytes() * 2, whole.bytes());
            let Held::Float(float) = held else { continue };
            let again = w.to_dtype(float.dtype()).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(values(&rounded), values(&again), "{held:?}");
        }
    }
}

#[test]
fn what_bf16_holds_is_held_in_it() {
    let w = tensor(&noise(40 * 8, 2), 40);
    let trained_in_bf16 = w.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let x = tensor(&noise(3 * 8, 1), 3);
    let device = Device::default();
    for (w, held) in [(trained_in_bf16, Held::Float(Float::BF16)), (w, Held::default())] {
        for weight in [device.weight(&w).unwrap(), device.projection(&[&w], None).unwrap()] {
            let panels = weight.panels().unwrap();
            assert_eq!(panels.held(), held);
            let whole = packed(&w, Held::default());
            assert_eq!(through(&x, &panels, &[0, 9, 39]), through(&x, &whole, &[0, 9, 39]));
        }
        let table = device.table(&w).unwrap();
        assert_eq!(Held::Float(Float::F32) == held, table.dtype() == DType::F32);
        assert_eq!(values(&table.to_dtype(DType::F32).unwrap()), values(&w));
    }
}

#[test]
fn int8_loses_half_a_step_of_a_weight() {
    for (n, k, out) in [(1, 1, 1), (14, 64, 300), (113, 33, 70), (5, 576, 40), (2, 9000, 33)] {
        let mut x = noise(n * k, 1);
        x.chunks_exact_mut(k).for_each(|row| row[k / 2] *= 300.0); // as language models have it
        let w = noise(out * k, 2);
        let panels = packed(&tensor(&w, out), Held::Int8);
        let rows = values(&held_rows(&panels));
        for (row, w) in rows.chunks_exact(k).zip(w.chunks_exact(k)) {
            for (row, part) in row.chunks(32).zip(w.chunks(32)) {
                // A group's scale is its own, in sixteenths of the output's.
                let step = (largest(part) + largest(w) / 16.0) / 127.0;
                assert!(row.iter().zip(part).all(|(a, b)| f64::from((a - b).abs()) <= 0.5001 * step));
            }
        }
        let targets: Vec<u32> = (0..n).map(|i| (i * 7 % out) as u32).collect();
        let (y, reward) = through(&tensor(&x, n), &panels, &targets);
        // Rows lose half a step too, a 2 000th of their largest at worst.
        let lost = largest(&x) / 2000.0 * largest(&w) * (k as f64).sqrt();
        let want = reference::linear(&wide(&x), &wide(&rows), k);
        for (got, want) in y.iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() <= lost + 1e-5 * want.abs(), "{got}, not {want}, k = {k}");
        }
        // The reward op sees the same logits.
        let logits: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
        for (i, logits) in logits.chunks_exact(out).enumerate() {
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
            close(&[reward.logit[i]], &[logits[targets[i] as usize]], 0.0);
            close(&[reward.logsumexp[i]], &[max + sum.ln()], 1e-6);
        }
    }
}

#[test]
fn int16_loses_what_f16_loses() {
    for (n, k, out) in [(1, 1, 1), (14, 64, 300), (113, 33, 70), (5, 576, 40), (2, 9000, 33)] {
        let w = tensor(&noise(out * k, 2), out);
        let (codes, whole) = (packed(&w, Held::Int16), packed(&w, Held::default()));
        assert!(codes.bytes() <= whole.bytes() / 2 + (k + 4) * 32 * 4, "{} bytes", codes.bytes());
        let x = tensor(&noise(n * k, 1), n);
        let targets: Vec<u32> = (0..n).map(|i| (i * 7 % out) as u32).collect();
        let ((y, reward), (_, want)) = (through(&x, &codes, &targets), through(&x, &whole, &targets));
        let exact = reference::linear(&wide(&values(&x)), &wide(&values(&w)), k);
        let off = y.iter().zip(&exact).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum::<f64>();
        let all = exact.iter().map(|want| want * want).sum::<f64>();
        assert!(off <= 5e-4f64.powi(2) * all, "off by {} of {}", off.sqrt(), all.sqrt());
        let size = 1e-3 * (k as f64).sqrt().max(1.0) * largest(&values(&x));
        for (got, want) in [(&reward.logit, &want.logit), (&reward.logsumexp, &want.logsumexp)] {
            assert!(got.iter().zip(want).all(|(got, want)| f64::from((got - want).abs()) <= size));
        }
    }
}

#[test]
fn int8_comes_back_from_its_parts() {
    let panels = packed(&tensor(&noise(70 * 33, 1), 70), Held::Int8);
    let [codes, factors, scales] = panels.int8_parts().unwrap();
    let again = Arc::new(Panels::from_int8_parts(70, 33, [&codes, &factors, &scales]).unwrap());
    let x = tensor(&noise(5 * 33, 2), 5);
    assert_eq!(through(&x, &panels, &[0, 1, 2, 3, 69]), through(&x, &again, &[0, 1, 2, 3, 69]));
    for (out, k, parts) in [
        (70, 35, [&codes[..], &factors, &scales]),
        (97, 33, [&codes, &factors, &scales]),
        (70, 33, [&codes[1..], &factors, &scales]),
        (70, 33, [&codes, &factors, &scales[4..]]),
    ] {
        assert!(Panels::from_int8_parts(out, k, parts).is_err());
    }
}

#[test]
fn gating_in_one_gives_the_bits_of_two_steps() {
    for held in [Held::default(), HALVES[0], HALVES[1], Held::Int8, Held::Int16] {
        for (n, k, m) in [(1, 1, 1), (113, 33, 96), (15, 300, 256), (0, 8, 32), (14, 20, 48), (5, 40, 23)] {
            let x = Tensor::from_slice(&noise(n * k, 1), (n, k), &candle_core::Device::Cpu).unwrap();
            let (gate, up) = (tensor(&noise(m * k, 2), m), tensor(&noise(m * k, 3), m));
            let x = Rows::from(x);
            let in_one = x.gated(&Gates::pack(&gate, &up, held).unwrap()).unwrap();
            let joined = Weight::Packed(Arc::new(Panels::pack_rows(&[&gate, &up], held).unwrap()));
            let in_two = x.linear(&joined, None, None).unwrap().swiglu().unwrap();
            assert_eq!(
                values(in_one.tensor().unwrap()),
                values(in_two.tensor().unwrap()),
                "{held:?}, {n} rows"
            );
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let (mut x, mut w) = (noise(3 * 8, 1), noise(40 * 8, 2));
    (x[8], w[5 * 8]) = (f32::NAN, f32::INFINITY);
    for held in [HALVES[0], HALVES[1], Held::Int8, Held::Int16] {
        let panels = packed(&tensor(&w, 40), held);
        let y = values(&linear(&tensor(&x, 3), &Weight::Packed(panels), None, None).unwrap());
        for (at, y) in y.iter().enumerate() {
            assert_eq!(y.is_finite(), at / 40 != 1 && at % 40 != 5, "{held:?}: [{}, {}]", at / 40, at % 40);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// A row's bits are the same alone, anywhere in a batch, and with any number of threads.
    #[test]
    fn rows_do_not_see_their_neighbours(n in 1usize..60, pick in 0usize..60, threads in 1usize..4) {
        let (pick, d, v) = (pick % n, 47, 700);
        let hidden = tensor(&noise(n * d, 9), n);
        let row = hidden.narrow(0, pick, 1).unwrap().contiguous().unwrap();
        let targets: Vec<u32> = (0..n as u32).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for held in [HALVES[0], HALVES[1], Held::Int8, Held::Int16] {
            let panels = packed(&tensor(&noise(v * d, 10), v), held);
            let (y, all) = pool.install(|| through(&hidden, &panels, &targets));
            let (own, alone) = through(&row, &panels, &targets[pick..=pick]);
            prop_assert_eq!(&own[..], &y[pick * v..(pick + 1) * v]);
            let of = |r: &TokenReward, i: usize| [r.logit[i], r.logsumexp[i], r.max[i], r.entropy[i]];
            prop_assert_eq!(of(&alone, 0), of(&all, pick));
        }
    }
}
