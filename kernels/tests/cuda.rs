//! The CUDA faces against the f64 reference. Without a GPU these tests say so and pass.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use common::{noise, wide};
use qrm_kernels::Float;
use qrm_kernels::cuda::{self, Form, Gpu, Linear, Matrix, Plan, Rotation, Vector};
use qrm_kernels::{BLOCK, RopeTable, Segment, reference};

const DTYPES: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

fn gpu() -> Option<Arc<Gpu>> {
    Gpu::open(0).inspect_err(|why| eprintln!("skipped: {why}")).ok()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// What is left of the numbers once they are stored as `dtype`.
fn rounded(values: &[f32], dtype: Float) -> Vec<f32> {
    let stored = tensor(values, &[values.len()]).to_dtype(dtype.dtype()).unwrap();
    stored.to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap()
}

fn values(matrix: &Matrix) -> Vec<f32> {
    matrix.download().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Relative to the results' scale: a few roundings of the type.
fn close(what: &str, dtype: Float, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let epsilon = match dtype {
        Float::F32 => 2e-5,
        Float::F16 => 4e-3,
        Float::BF16 => 2e-2,
    };
    let scale = expected.iter().fold(1.0f64, |scale, x| scale.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= epsilon * scale, "{what}, {dtype:?} [{i}]: {f}, expected {e}");
    }
}

#[test]
fn small_ops() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for (n, d) in [(1, 8), (3, 67), (130, 576), (5, 4096)] {
            let (x, w) = (noise(n * d, 1), noise(d, 2));
            let norm = Vector::upload(&gpu, &tensor(&w, &[d]), dtype).unwrap();
            let rows = Matrix::upload(&gpu, &tensor(&x, &[n, d]), Float::F32).unwrap();
            let found = values(&cuda::rms_norm(&rows, None, &norm, 1e-6).unwrap());
            let expected: Vec<f64> =
                x.chunks(d).flat_map(|row| reference::rms_norm(&wide(row), &wide(&w), 1e-6)).collect();
            close("rms_norm", dtype, &found, &expected);

            let gate_up = rounded(&noise(n * 2 * d, 3), dtype);
            let there = Matrix::upload(&gpu, &tensor(&gate_up, &[n, 2 * d]), dtype).unwrap();
            let expected: Vec<f64> =
                gate_up.chunks(2 * d).flat_map(|row| reference::swiglu(&wide(row))).collect();
            close("swiglu", dtype, &values(&cuda::swiglu(&there).unwrap()), &expected);

            let out = d / 2 + 1;
            let (h, weight) = (rounded(&noise(n * d, 4), dtype), rounded(&noise(out * d, 5), dtype));
            let hidden = Matrix::upload(&gpu, &tensor(&h, &[n, d]), dtype).unwrap();
            let linear = Linear::upload(&gpu, &[&tensor(&weight, &[out, d])], None, dtype).unwrap();
            let found = values(&cuda::linear(&hidden, &linear, None).unwrap());
            close("linear", dtype, &found, &reference::linear(&wide(&h), &wide(&weight), d));

            let v = noise(d, 9);
            let head = Linear::upload(&gpu, &[&tensor(&v, &[1, d])], None, Float::F32).unwrap();
            let expected: Vec<f64> =
                reference::linear(&wide(&h), &wide(&v), d).iter().map(|x| x + 0.5).collect();
            close("row_dot", Float::F32, &cuda::row_dot(&hidden, &head, 0.5).unwrap(), &expected);

            if dtype != Float::F32 {
                let bytes = Linear::upload_int8(&gpu, &[&tensor(&weight, &[out, d])], None, dtype).unwrap();
                let scales =
                    weight.chunks(d).map(|row| row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0);
                let narrow: Vec<f32> = weight
                    .chunks(d)
                    .zip(scales)
                    .flat_map(|(row, by)| row.iter().map(move |x| (x / by).round() * by))
                    .collect();
                let found = values(&cuda::linear(&hidden, &bytes, None).unwrap());
                close("int8", dtype, &found, &reference::linear(&wide(&h), &wide(&narrow), d));
            }
        }
    }
}

#[test]
fn rope_and_attention() {
    let Some(gpu) = gpu() else { return };
    let segments = [
        Segment { start: 0, len: 70, parent: None, position: 0 },
        Segment { start: 70, len: 5, parent: Some(0), position: 70 },
        Segment { start: 75, len: 33, parent: Some(0), position: 70 },
        Segment { start: 108, len: 1, parent: Some(1), position: 75 },
    ];
    let n = 109;
    let positions: Vec<u32> =
        segments.iter().flat_map(|s| s.position as u32..(s.position + s.len) as u32).collect();
    for dtype in DTYPES {
        // Heads of 8, 24, 256 and all of f32 go to the plain kernel, of 64 and 128 to that of warpgroups where there is one.
        for (q_heads, kv_heads, head) in
            [(1, 1, 8), (2, 1, 16), (6, 2, 24), (4, 4, 64), (4, 2, 96), (2, 1, 112), (8, 2, 128), (2, 1, 256)]
        {
            let width = (q_heads + 2 * kv_heads) * head;
            let qkv = rounded(&noise(n * width, 6), dtype);
            let batch = cuda::Batch {
                ids: &positions,
                positions: &positions,
                segments: &segments,
                ..Default::default()
            };
            let plan = Plan::new(&gpu, &batch, q_heads / kv_heads).unwrap();
            let upload = || Matrix::upload(&gpu, &tensor(&qkv, &[n, width]), dtype).unwrap();

            let inv_freq: Vec<f64> =
                (0..head / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / head as f64)).collect();
            let rotation = Rotation::upload(&gpu, &RopeTable::new(&inv_freq, 128)).unwrap();
            let found =
                cuda::qk_rope(upload(), &plan.positions(), &rotation, (q_heads, kv_heads), None).unwrap();
            let mut expected = Vec::new();
            for (row, position) in qkv.chunks(width).zip(&positions) {
                for (h, x) in row.chunks(head).enumerate() {
                    match h < q_heads + kv_heads {
                        true => expected.extend(reference::rope(&wide(x), f64::from(*position), &inv_freq)),
                        false => expected.extend(wide(x)),
                    }
                }
            }
            close("rope", dtype, &values(&found), &expected);

            for window in [None, Some(1), Some(40)] {
                let found =
                    cuda::forest_attention(&upload(), &plan, None, q_heads, kv_heads, window).unwrap();
                let expected =
                    reference::forest_attention(&wide(&qkv), &segments, q_heads, kv_heads, head, window);
                close("attention", dtype, &values(&found), &expected);
            }
        }
    }
}

/// More blocks of keys than a kernel holds at once, and more heads of a key than it has rows.
#[test]
fn long_attention() {
    let Some(gpu) = gpu() else { return };
    let long = [
        Segment { start: 0, len: 610, parent: None, position: 0 },
        Segment { start: 610, len: 45, parent: Some(0), position: 610 },
    ];
    let short = [Segment { start: 0, len: 3, parent: None, position: 0 }];
    for dtype in DTYPES {
        for (segments, (q_heads, kv_heads, head)) in [
            (&long[..], (2, 1, 32)),
            (&long[..], (2, 1, 64)),
            (&long[..], (2, 1, 128)),
            (&short[..], (131, 1, 32)),
            (&short[..], (131, 1, 64)),
        ] {
            let n: usize = segments.iter().map(|s| s.len).sum();
            let width = (q_heads + 2 * kv_heads) * head;
            let qkv = rounded(&noise(n * width, 12), dtype);
            let ids = vec![0u32; n];
            let batch = cuda::Batch { ids: &ids, positions: &ids, segments, ..Default::default() };
            let plan = Plan::new(&gpu, &batch, q_heads / kv_heads).unwrap();
            let there = Matrix::upload(&gpu, &tensor(&qkv, &[n, width]), dtype).unwrap();
            for window in [None, Some(100)] {
                let found = cuda::forest_attention(&there, &plan, None, q_heads, kv_heads, window).unwrap();
                let expected =
                    reference::forest_attention(&wide(&qkv), segments, q_heads, kv_heads, head, window);
                close("long attention", dtype, &values(&found), &expected);
            }
        }
    }
}

/// The same bits whether a prompt is in the batch or was kept from another.
#[test]
fn attention_after_a_kept_prompt() {
    let Some(gpu) = gpu() else { return };
    let (prompt, answer) = (5 * BLOCK, 21);
    // Where its blocks are kept.
    let slots = [3, 0, 4, 2, 6];
    for dtype in DTYPES {
        for (q_heads, kv_heads, head) in [(6, 2, 24), (2, 1, 32), (4, 2, 64), (4, 1, 128)] {
            let width = (q_heads + 2 * kv_heads) * head;
            let qkv = rounded(&noise((prompt + answer) * width, 13), dtype);
            let attend = |rows: &[f32], segments: &[Segment], slots: &[usize], pool: Option<&cuda::Pool>| {
                let n = rows.len() / width;
                let ids = vec![0u32; n];
                let batch = cuda::Batch { ids: &ids, positions: &ids, segments, slots, ..Default::default() };
                let plan = Plan::new(&gpu, &batch, q_heads / kv_heads).unwrap();
                let there = Matrix::upload(&gpu, &tensor(rows, &[n, width]), dtype).unwrap();
                values(&cuda::forest_attention(&there, &plan, pool, q_heads, kv_heads, None).unwrap())
            };
            let first = Segment { start: 0, len: prompt, parent: None, position: 0 };
            let then = Segment { start: prompt, len: answer, parent: Some(0), position: prompt };
            let whole = attend(&qkv, &[first.clone(), then.clone()], &[], None);

            let (before, after) = qkv.split_at(prompt * width);
            let ids = vec![0u32; prompt];
            let rows = |i: usize| (i * BLOCK..(i + 1) * BLOCK).map(|row| row as u32).collect();
            let keep: Vec<(usize, Vec<u32>)> =
                slots.iter().enumerate().map(|(i, slot)| (*slot, rows(i))).collect();
            let batch = cuda::Batch {
                ids: &ids,
                positions: &ids,
                segments: std::slice::from_ref(&first),
                keep: &keep,
                ..Default::default()
            };
            let plan = Plan::new(&gpu, &batch, q_heads / kv_heads).unwrap();
            let there = Matrix::upload(&gpu, &tensor(before, &[prompt, width]), dtype).unwrap();
            let mut pool = cuda::pool(&gpu, 7, 2 * kv_heads * head, dtype).unwrap();
            cuda::keep(&there, &plan, (q_heads, kv_heads), &mut pool).unwrap();

            let kept = Segment { start: answer, ..first };
            let found = attend(after, &[kept, Segment { start: 0, ..then }], &slots, Some(&pool));
            assert_eq!(found, whole[prompt * q_heads * head..], "{dtype:?}, {q_heads}/{kv_heads} of {head}");
        }
    }
}

#[test]
fn gradients_of_logits() {
    let Some(gpu) = gpu() else { return };
    let (n, v) = (5, 301);
    let (z, g) = (noise(n * v, 10), noise(n * 3, 11));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 71 % v as u32).collect();
    // Logits as the hidden states of an identity head.
    let identity: Vec<f64> = (0..v * v).map(|i| f64::from(i / v == i % v)).collect();
    let scores = reference::token_reward(&wide(&z), &identity, &targets, v);
    let rows: Vec<f32> = (0..4).flat_map(|i| scores.iter().map(move |s| s[i] as f32)).collect();
    let upload =
        |values: &[f32], shape: &[usize]| Matrix::upload(&gpu, &tensor(values, shape), Float::F32).unwrap();
    let batch = cuda::Batch { ids: &targets, positions: &targets, ..Default::default() };
    let plan = Plan::new(&gpu, &batch, 1).unwrap();
    let found = cuda::logits_gradient(
        upload(&z, &[n, v]),
        0,
        &plan.ids(),
        &upload(&rows, &[4, n]),
        &upload(&g, &[n, 3]),
    )
    .unwrap();
    let mut expected = Vec::new();
    for (i, (z, s)) in z.chunks(v).zip(&scores).enumerate() {
        let g: Vec<f64> = wide(&g[3 * i..3 * i + 3]);
        expected.extend(z.iter().enumerate().map(|(j, z)| {
            let log_p = f64::from(*z) - s[1];
            let own = if j == targets[i] as usize { g[0] } else { 0.0 };
            own + (g[1] - g[2] * (log_p + s[3])) * log_p.exp()
        }));
    }
    close("logits_gradient", Float::F32, &values(&found), &expected);
}

#[test]
fn token_reward_in_all_forms() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for (n, d, v) in [(1, 64, 1000), (3, 72, 1), (130, 576, 5003), (257, 128, 2049)] {
            // Peaked rows and rows far below 0 among the others.
            let mut h = noise(n * d, 7);
            h.chunks_mut(d).step_by(3).for_each(|row| row.iter_mut().for_each(|x| *x *= 30.0));
            let h = rounded(&h, dtype);
            let w = rounded(&noise(v * d, 8), dtype);
            let targets: Vec<u32> = (0..n).map(|i| ((i * 7919 + v - 1) % v) as u32).collect();
            let hidden = Matrix::upload(&gpu, &tensor(&h, &[n, d]), dtype).unwrap();
            let weight = Matrix::upload(&gpu, &tensor(&w, &[v, d]), dtype).unwrap();
            let batch = cuda::Batch { ids: &targets, positions: &targets, ..Default::default() };
            let plan = Plan::new(&gpu, &batch, 1).unwrap();
            let expected = reference::token_reward(&wide(&h), &wide(&w), &targets, d);
            for form in Form::available(&weight) {
                let found = cuda::token_reward(&hidden, &weight, &plan.ids(), form).unwrap();
                let what = format!("{form:?} {n}x{d}x{v}");
                // Relative to what is summed up in the row's logits, where every error begins.
                let found = [&found.logit, &found.logsumexp, &found.max, &found.entropy];
                for (row, e) in expected.iter().enumerate() {
                    let (h, w) = (&h[row * d..][..d], &w[targets[row] as usize * d..][..d]);
                    let size: f32 = h.iter().zip(w).map(|(h, w)| (h * w).abs()).sum();
                    let bound = 2e-5 * f64::from(size).max(e[1].abs()).max(1.0);
                    for (i, found) in found.iter().enumerate() {
                        let (f, e) = (f64::from(found[row]), e[i]);
                        assert!((f - e).abs() <= bound, "{what}, {dtype:?} [{row}][{i}]: {f}, expected {e}");
                    }
                }
            }
        }
    }
}
