//! Every backward against central differences of the op's f64 reference, on odd shapes.

mod common;

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use common::{noise, wide};
use qrm_kernels::{
    Norm, Panels, QkNorm, RopeTable, Segment, Weight, forest_attention, linear, qk_rope, reference, rms_norm,
    swiglu, token_logits,
};

fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// Checks the gradients of `Σ y ⊙ g` for every operand: `op` in f32 with autograd, `truth` in f64. Large operands are
/// checked at some places only.
fn check(
    what: &str,
    operands: &[(Vec<f32>, Vec<usize>)],
    op: impl Fn(&[Tensor]) -> Tensor,
    truth: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let vars: Vec<Var> = operands.iter().map(|(v, shape)| var(v, shape)).collect();
    let y = op(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>());
    let weights = noise(y.elem_count(), 99);
    let g = Tensor::from_slice(&weights, y.shape(), &Device::Cpu).unwrap();
    let grads = (y * g).unwrap().sum_all().unwrap().backward().unwrap();
    let at: Vec<Vec<f64>> = operands.iter().map(|(v, _)| wide(v)).collect();
    let loss =
        |at: &[Vec<f64>]| -> f64 { truth(at).iter().zip(&weights).map(|(y, w)| y * f64::from(*w)).sum() };
    for (o, v) in vars.iter().enumerate() {
        let grad = grads.get(v).unwrap_or_else(|| panic!("{what}: no gradient for operand {o}"));
        let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        let step = (grad.len() / 150).max(1);
        for i in (0..grad.len()).step_by(step) {
            let (mut up, mut down) = (at.clone(), at.clone());
            let h = 1e-5;
            up[o][i] += h;
            down[o][i] -= h;
            let want = (loss(&up) - loss(&down)) / (2.0 * h);
            assert!(
                (f64::from(grad[i]) - want).abs() <= 2e-4 * (1.0 + want.abs()),
                "{what}: operand {o} [{i}]: {}, not {want}",
                grad[i]
            );
        }
    }
}

fn operand(shape: &[usize], seed: u64) -> (Vec<f32>, Vec<usize>) {
    (noise(shape.iter().product(), seed), shape.to_vec())
}

#[test]
fn linear_with_bias_and_residual() {
    for (n, k, out) in [(1, 1, 1), (5, 7, 33), (40, 33, 20), (3, 64, 65)] {
        let operands =
            [operand(&[n, k], 1), operand(&[out, k], 2), operand(&[out], 3), operand(&[n, out], 4)];
        let truth = |at: &[Vec<f64>]| {
            let mut y = reference::linear(&at[0], &at[1], k);
            y.iter_mut().enumerate().for_each(|(i, y)| *y += at[2][i % out] + at[3][i]);
            y
        };
        let trained =
            |t: &[Tensor]| linear(&t[0], &Weight::Trained(t[1].clone()), Some(&t[2]), Some(&t[3])).unwrap();
        check("linear", &operands, trained, truth);
        // With a packed weight only input and residual have a gradient.
        let (w, _) = operands[1].clone();
        let packed = Tensor::from_slice(&w, (out, k), &Device::Cpu).unwrap();
        let packed = Weight::Packed(Arc::new(Panels::pack(&packed).unwrap()));
        check(
            "packed linear",
            &[operands[0].clone(), operands[3].clone()],
            |t| linear(&t[0], &packed, None, Some(&t[1])).unwrap(),
            |at| {
                let y = reference::linear(&at[0], &wide(&w), k);
                y.iter().zip(&at[1]).map(|(y, r)| y + r).collect()
            },
        );
        check(
            "packed linear alone",
            &operands[..1],
            |t| linear(&t[0], &packed, None, None).unwrap(),
            |at| reference::linear(&at[0], &wide(&w), k),
        );
    }
}

#[test]
fn small_ops() {
    for (n, d) in [(1, 1), (3, 7), (70, 16), (2, 33)] {
        let truth = |at: &[Vec<f64>]| -> Vec<f64> {
            at[0].chunks(d).flat_map(|x| reference::rms_norm(x, &at[1], 1e-5)).collect()
        };
        let op = |t: &[Tensor]| rms_norm(&t[0], &t[1], 1e-5).unwrap();
        check("rms_norm", &[operand(&[n, d], 1), operand(&[d], 2)], op, truth);
        let truth = |at: &[Vec<f64>]| at[0].chunks(2 * d).flat_map(reference::swiglu).collect();
        check("swiglu", &[operand(&[n, 2 * d], 3)], |t| swiglu(&t[0]).unwrap(), truth);
    }
}

#[test]
fn rope_with_and_without_norms() {
    let (q_heads, kv_heads, head) = (4, 2, 6);
    let heads = q_heads + 2 * kv_heads;
    let inv_freq = [1.0, 0.1, 0.01];
    let positions: Arc<[u32]> = (0..40).map(|i| i * 3 % 100).collect();
    let n = positions.len();
    let table = Arc::new(RopeTable::new(&inv_freq, 512));
    let truth = |at: &[Vec<f64>]| -> Vec<f64> {
        let heads = at[0].chunks(head).enumerate().flat_map(|(i, x)| {
            let (row, h) = (i / heads, i % heads);
            let weight = at.get(if h < q_heads { 1 } else { 2 });
            let x = match weight {
                Some(w) if h < q_heads + kv_heads => reference::rms_norm(x, w, 1e-6),
                _ => x.to_vec(),
            };
            match h < q_heads + kv_heads {
                true => reference::rope(&x, f64::from(positions[row]), &inv_freq),
                false => x,
            }
        });
        heads.collect()
    };
    let op = |t: &[Tensor]| {
        let norm = (t.len() > 1).then(|| QkNorm {
            q: Norm::Cpu(t[1].clone()),
            k: Norm::Cpu(t[2].clone()),
            eps: 1e-6,
        });
        qk_rope(t[0].clone(), &positions, &table, q_heads, kv_heads, norm.as_ref()).unwrap()
    };
    let qkv = operand(&[n, heads * head], 1);
    check("rope", std::slice::from_ref(&qkv), op, truth);
    check("rope with norms", &[qkv, operand(&[head], 2), operand(&[head], 3)], op, truth);
}

#[test]
fn attention_over_a_forest() {
    let shape = [(70, None), (5, Some(0)), (90, Some(0)), (1, Some(2)), (67, Some(2)), (33, None)];
    let mut segments: Vec<Segment> = Vec::new();
    for (len, parent) in shape {
        let position = parent.map_or(0, |p: usize| segments[p].position + segments[p].len);
        let start = segments.last().map_or(0, |s| s.start + s.len);
        segments.push(Segment { start, len, parent, position });
    }
    let n = segments.iter().map(|s| s.len).sum();
    let segments: Arc<[Segment]> = segments.into();
    for (q_heads, kv_heads, head, window) in
        [(2, 1, 8, None), (3, 3, 33, None), (4, 2, 5, Some(16)), (2, 2, 64, Some(70))]
    {
        let truth =
            |at: &[Vec<f64>]| reference::forest_attention(&at[0], &segments, q_heads, kv_heads, head, window);
        let op = |t: &[Tensor]| forest_attention(&t[0], &segments, q_heads, kv_heads, window).unwrap();
        check("attention", &[operand(&[n, (q_heads + 2 * kv_heads) * head], 5)], op, truth);
    }
}

#[test]
fn logits_of_a_vocabulary() {
    for (n, d, v) in [(1, 3, 1), (9, 8, 40), (50, 5, 300), (3, 4, 2100)] {
        let targets: Vec<u32> = (0..n as u32).map(|i| i * 7919 % v as u32).collect();
        let truth = |at: &[Vec<f64>]| -> Vec<f64> {
            let rows = reference::token_reward(&at[0], &at[1], &targets, d);
            rows.iter().flat_map(|r| [r[0], r[1], r[3]]).collect()
        };
        let operands = [operand(&[n, d], 7), operand(&[v, d], 8)];
        let trained = |t: &[Tensor]| token_logits(&t[0], &Weight::Trained(t[1].clone()), &targets).unwrap();
        check("token_logits", &operands, trained, truth);
        // As in the Q-RM loss: only the logits have a gradient.
        let only = |t: &[Tensor]| trained(t).narrow(1, 0, 1).unwrap();
        let logits = |at: &[Vec<f64>]| truth(at).into_iter().step_by(3).collect();
        check("token_logits, logits only", &operands, only, logits);
        // As in a language model's loss: no gradient of the entropy.
        let both = |t: &[Tensor]| trained(t).narrow(1, 0, 2).unwrap();
        let pairs = |at: &[Vec<f64>]| truth(at).chunks(3).flat_map(|r| [r[0], r[1]]).collect();
        check("token_logits, no entropy", &operands, both, pairs);
        let weight = Tensor::from_slice(&operands[1].0, (v, d), &Device::Cpu).unwrap();
        let packed = Weight::Packed(Arc::new(Panels::pack(&weight).unwrap()));
        check(
            "token_logits, packed",
            &operands[..1],
            |t| token_logits(&t[0], &packed, &targets).unwrap(),
            |at| truth(&[at[0].clone(), wide(&operands[1].0)]),
        );
    }
}

/// The same bits with any number of threads: a training run can be repeated.
#[test]
fn threads_change_no_bit() {
    let (n, d, v) = (300, 32, 500);
    let segments: Arc<[Segment]> = [
        Segment { start: 0, len: 100, parent: None, position: 0 },
        Segment { start: 100, len: 80, parent: Some(0), position: 100 },
        Segment { start: 180, len: 120, parent: Some(0), position: 100 },
    ]
    .into();
    let targets: Vec<u32> = (0..n as u32).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let vars =
                [var(&noise(n * d, 1), &[n, d]), var(&noise(d, 2), &[d]), var(&noise(v * d, 3), &[v, d])];
            let x = rms_norm(&vars[0], &vars[1], 1e-5).unwrap();
            let y = forest_attention(&x, &segments, 2, 1, None).unwrap();
            let y = Tensor::cat(&[&y, &y], 1).unwrap();
            let z = token_logits(&y, &Weight::Trained(vars[2].as_tensor().clone()), &targets).unwrap();
            let grads = z.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let bits = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            vars.iter().flat_map(bits).map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
}
