//! Every op against its f64 reference on odd shapes and hostile values, and its bits against batching.

mod common;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use common::{close, noise, tensor, values, wide};
use proptest::prelude::*;
use qrm_kernels::{
    BLOCK, Float, Fresh, Held, KvCache, Panels, RopeTable, Segment, Weight, forest_attention,
    keys_and_values, linear, prefix_attention, qk_rope, reference, rms_norm, swiglu, token_reward,
};

fn packed(weights: &[&Tensor]) -> Weight {
    Weight::Packed(Arc::new(Panels::pack_rows(weights, Held::default()).unwrap()))
}

#[test]
fn linear_matches_on_odd_shapes() {
    for (n, k, out) in
        [(1, 1, 1), (3, 5, 31), (14, 64, 32), (15, 33, 33), (113, 96, 200), (0, 8, 8), (29, 160, 65)]
    {
        let (x, w) = (noise(n * k, 1), noise(out * k, 2));
        let (bias, residual) = (noise(out, 3), noise(n * out, 4));
        let panels = packed(&[&tensor(&w, out)]);
        let x_t = Tensor::from_slice(&x, (n, k), &Device::Cpu).unwrap();
        let r_t = Tensor::from_slice(&residual, (n, out), &Device::Cpu).unwrap();
        let bias_t = Tensor::from_slice(&bias, out, &Device::Cpu).unwrap();
        let mut want = reference::linear(&wide(&x), &wide(&w), k);
        close(&values(&linear(&x_t, &panels, None, None).unwrap()), &want, 1e-5);
        want.iter_mut()
            .enumerate()
            .for_each(|(i, y)| *y += f64::from(bias[i % out]) + f64::from(residual[i]));
        close(&values(&linear(&x_t, &panels, Some(&bias_t), Some(&r_t)).unwrap()), &want, 1e-5);
    }
}

#[test]
fn joined_weights_are_their_parts_side_by_side() {
    let (a, b) = (noise(5 * 7, 1), noise(40 * 7, 2));
    let x = tensor(&noise(3 * 7, 3), 3);
    let joined = packed(&[&tensor(&a, 5), &tensor(&b, 40)]);
    let y = values(&linear(&x, &joined, None, None).unwrap());
    let alone = |w: &[f32], rows| values(&linear(&x, &packed(&[&tensor(w, rows)]), None, None).unwrap());
    let (ya, yb) = (alone(&a, 5), alone(&b, 40));
    for i in 0..3 {
        assert_eq!(y[i * 45..i * 45 + 5], ya[i * 5..][..5]);
        assert_eq!(y[i * 45 + 5..][..40], yb[i * 40..][..40]);
    }
    assert_eq!(values(&joined.panels().unwrap().gather(&[44, 0, 4]).unwrap())[..7], b[39 * 7..]);
}

#[test]
fn small_ops_match() {
    for d in [1, 7, 64, 100] {
        let (x, w) = (noise(3 * d, 1), noise(d, 2));
        let want: Vec<f64> =
            x.chunks(d).flat_map(|x| reference::rms_norm(&wide(x), &wide(&w), 1e-6)).collect();
        close(
            &values(&rms_norm(&tensor(&x, 3), &tensor(&w, 1).flatten_all().unwrap(), 1e-6).unwrap()),
            &want,
            1e-5,
        );
        let gate_up: Vec<f32> = noise(6 * d, 3).iter().map(|v| v * 40.0).collect();
        let want: Vec<f64> = gate_up.chunks(2 * d).flat_map(|x| reference::swiglu(&wide(x))).collect();
        close(&values(&swiglu(&tensor(&gate_up, 3)).unwrap()), &want, 1e-5);
    }
}

#[test]
fn rope_rotates_queries_and_keys_only() {
    let (q_heads, kv_heads, head) = (4, 2, 6);
    let width = (q_heads + 2 * kv_heads) * head;
    let inv_freq = [1.0, 0.1, 0.01];
    let x = noise(3 * width, 1);
    let positions: Arc<[u32]> = [0, 500, 7].into();
    let table = Arc::new(RopeTable::new(&inv_freq, 512));
    let y = values(&qk_rope(tensor(&x, 3), &positions, &table, q_heads, kv_heads, None).unwrap());
    for (row, position) in positions.iter().enumerate() {
        let (x, y) = (&x[row * width..][..width], &y[row * width..][..width]);
        for h in 0..q_heads + kv_heads {
            let want = reference::rope(&wide(&x[h * head..][..head]), f64::from(*position), &inv_freq);
            close(&y[h * head..][..head], &want, 1e-5);
        }
        assert_eq!(x[(q_heads + kv_heads) * head..], y[(q_heads + kv_heads) * head..]);
    }
    assert!(qk_rope(tensor(&x, 3), &[0, 512, 1].into(), &table, q_heads, kv_heads, None).is_err());
}

/// A root, two children and a grandchild; and a tree of its own.
fn forest() -> (Arc<[Segment]>, usize) {
    let shape = [(70, None), (5, Some(0)), (130, Some(0)), (1, Some(2)), (67, Some(2)), (33, None)];
    let mut segments: Vec<Segment> = Vec::new();
    let mut start = 0;
    for (len, parent) in shape {
        let position = parent.map_or(0, |p: usize| segments[p].position + segments[p].len);
        segments.push(Segment { start, len, parent, position });
        start += len;
    }
    (segments.into(), start)
}

#[test]
fn attention_matches_over_a_forest() {
    let (segments, n) = forest();
    for (q_heads, kv_heads, head, window) in
        [(4, 2, 16, None), (3, 1, 64, None), (2, 2, 24, Some(16)), (6, 2, 40, Some(1)), (1, 1, 1, Some(100))]
    {
        let qkv = noise(n * (q_heads + 2 * kv_heads) * head, 5);
        let got = forest_attention(&tensor(&qkv, n), &segments, q_heads, kv_heads, window).unwrap();
        let want = reference::forest_attention(&wide(&qkv), &segments, q_heads, kv_heads, head, window);
        close(&values(&got), &want, 1e-5);
    }
}

#[test]
fn attention_bits_do_not_depend_on_where_the_forest_is_cut() {
    let (n, width) = (300, 4 * 16);
    let qkv = tensor(&noise(n * width, 6), n);
    let run = |cuts: &[usize]| {
        let mut segments = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([n]) {
            let parent = (start > 0).then(|| segments.len() - 1);
            segments.push(Segment { start, len: end - start, parent, position: start });
            start = end;
        }
        values(&forest_attention(&qkv, &segments.into(), 2, 1, None).unwrap())
    };
    let whole = run(&[]);
    for cuts in [&[1][..], &[64], &[100], &[63, 65, 200], &[299]] {
        assert_eq!(whole, run(cuts), "{cuts:?}");
    }
}

/// A root in kept blocks but for its end, one child partly, the rest in the batch.
#[test]
fn attention_after_kept_blocks_gives_the_bits_of_the_whole() {
    let (segments, n) = forest();
    for (q_heads, kv_heads, head, window) in [(4, 2, 16, None), (2, 2, 24, Some(16)), (1, 1, 1, None)] {
        let width = (q_heads + 2 * kv_heads) * head;
        let qkv = noise(n * width, 11);
        let whole = forest_attention(&tensor(&qkv, n), &segments, q_heads, kv_heads, window).unwrap();
        let whole = values(&whole);
        // 64 of the root's 70 tokens in four blocks; the second child waits for the root's last six.
        let rows: Vec<u32> = (64..n as u32).collect();
        let blocks: Vec<Vec<f32>> = (0..64 / BLOCK as u32)
            .map(|b| {
                let rows: Vec<u32> = (b * BLOCK as u32..(b + 1) * BLOCK as u32).collect();
                keys_and_values(&tensor(&qkv, n), &[&rows], q_heads, kv_heads).unwrap().remove(0)
            })
            .collect();
        let kept: Vec<&[f32]> = blocks.iter().map(Vec::as_slice).collect();
        let left = rows.len();
        let mut cut: Vec<Segment> = (0..kept.len())
            .map(|b| Segment {
                start: left + b * BLOCK,
                len: BLOCK,
                parent: b.checked_sub(1),
                position: b * BLOCK,
            })
            .collect();
        cut.push(Segment { start: 0, len: 6, parent: Some(kept.len() - 1), position: 64 });
        cut.extend(segments[1..].iter().map(|s| Segment {
            start: s.start - 64,
            parent: s.parent.map(|p| p + kept.len()),
            ..s.clone()
        }));
        let fresh = tensor(&qkv[64 * width..], left);
        let got = prefix_attention(&fresh, &cut, &kept, q_heads, kv_heads, window).unwrap();
        assert_eq!(values(&got), whole[64 * q_heads * head..]);
        assert!(prefix_attention(&fresh, &cut, &kept[1..], q_heads, kv_heads, window).is_err());
        assert!(prefix_attention(&fresh, &cut, &[&[0.0; 3][..]; 4], q_heads, kv_heads, window).is_err());
    }
}

/// Tokens that come in turns, each segment with room of its own to grow.
#[test]
fn cached_attention_gives_the_bits_of_the_whole() {
    let (segments, n) = forest();
    for (q_heads, kv_heads, head, window) in [(4, 2, 16, None), (2, 2, 24, Some(16)), (1, 1, 1, None)] {
        let width = (q_heads + 2 * kv_heads) * head;
        let qkv = noise(n * width, 9);
        let whole = forest_attention(&tensor(&qkv, n), &segments, q_heads, kv_heads, window).unwrap();
        let whole = values(&whole);
        for turn in [1, 50, 1000] {
            let mut cache = KvCache::default();
            let mut grown: Vec<Segment> = segments.to_vec();
            grown
                .iter_mut()
                .enumerate()
                .for_each(|(i, s)| (s.start, s.len) = ((segments.len() - i) * 200, 0));
            // A parent is complete before its children begin.
            for parents in [&[0][..], &[1, 2], &[3, 4], &[5]] {
                loop {
                    let (mut fresh, mut rows) = (Vec::new(), Vec::new());
                    for &i in parents {
                        let len = turn.min(segments[i].len - grown[i].len);
                        if len > 0 {
                            let first = segments[i].start + grown[i].len;
                            rows.extend(first..first + len);
                            grown[i].len += len;
                            fresh.push(Fresh { segment: i, len });
                        }
                    }
                    if fresh.is_empty() {
                        break;
                    }
                    let new: Vec<f32> =
                        rows.iter().flat_map(|r| &qkv[r * width..(r + 1) * width]).copied().collect();
                    // Segments that have not begun are not there yet.
                    let last = fresh.iter().map(|f| f.segment).max().unwrap();
                    let got = cache.attend(
                        &tensor(&new, rows.len()),
                        &grown[..=last],
                        &fresh,
                        q_heads,
                        kv_heads,
                        window,
                    );
                    let out = q_heads * head;
                    for (row, got) in rows.iter().zip(values(&got.unwrap()).chunks(out)) {
                        assert_eq!(got, &whole[row * out..(row + 1) * out], "turns of {turn}, row {row}");
                    }
                }
            }
        }
        let mut cache = KvCache::default();
        let one = tensor(&qkv[..width], 1);
        let at = |segment, len| [Fresh { segment, len }];
        for bad in [at(9, 1), at(0, 2), at(0, 71)] {
            assert!(cache.attend(&one, &segments, &bad, q_heads, kv_heads, window).is_err());
        }
    }
}

fn check_reward(n: usize, d: usize, v: usize, scale: f32, tolerance: f64) {
    let hidden = noise(n * d, 7);
    let weight: Vec<f32> = noise(v * d, 8).iter().map(|w| w * scale).collect();
    let targets: Vec<u32> =
        (0..n as u32).map(|i| if i == 0 { v as u32 - 1 } else { i * 7919 % v as u32 }).collect();
    let panels = Panels::pack(&tensor(&weight, v)).unwrap();
    let hidden_t = Tensor::from_slice(&hidden, (n, d), &Device::Cpu).unwrap();
    let got = token_reward(&hidden_t, &panels, &targets).unwrap();
    let want = reference::token_reward(&wide(&hidden), &wide(&weight), &targets, d);
    for (i, column) in [&got.logit, &got.logsumexp, &got.max, &got.entropy].into_iter().enumerate() {
        close(column, &want.iter().map(|w| w[i]).collect::<Vec<_>>(), tolerance);
    }
    for i in 0..n {
        assert!(got.logit[i] <= got.max[i] && got.max[i] <= got.logsumexp[i]);
        let bound = got.logsumexp[i] - got.max[i];
        assert!(
            bound <= got.entropy[i] + 1e-4 * (1.0 + got.max[i].abs())
                && got.entropy[i] <= (v as f32).ln() + 1e-4
        );
    }
}

#[test]
fn token_reward_matches_on_odd_shapes() {
    for (n, d, v) in
        [(0, 8, 40), (1, 8, 1), (1, 64, 509), (17, 33, 2049), (30, 16, 4096), (5, 7, 31), (1030, 8, 300)]
    {
        check_reward(n, d, v, 0.3, 2e-5);
    }
}

#[test]
fn token_reward_survives_peaked_and_sunken_logits() {
    check_reward(20, 64, 2500, 12.0, 2e-5); // logits to about ±300
    check_reward(20, 64, 509, 1e4, 2e-5);
    // Every logit far below zero, and a padded tail that must not count as zeros.
    let panels = Panels::pack(&tensor(&[-50.0; 33], 33)).unwrap();
    let got = token_reward(&tensor(&[30.0], 1), &panels, &[32]).unwrap();
    close(&got.logsumexp, &[-1500.0 + 33f64.ln()], 1e-6);
    close(&got.entropy, &[33f64.ln()], 1e-6);
}

#[test]
fn token_reward_tells_a_broken_logit_from_an_absent_one() {
    let (n, d, v) = (3, 8, 2500);
    let x = tensor(&noise(n * d, 1), n);
    // In the first block, in another one, in another chunk, beside padding; and a block of nothing else.
    for columns in [5..6, 300..301, 2100..2101, 2499..2500, 256..512] {
        let mut w = noise(v * d, 2);
        columns.clone().for_each(|column| w[column * d] = f32::NAN);
        for held in [Held::default(), Held::Float(Float::BF16), Held::Int8, Held::Int16] {
            let panels = Panels::pack_rows(&[&tensor(&w, v)], held).unwrap();
            let got = token_reward(&x, &panels, &[0, 1, 2]).unwrap();
            let all = got.logsumexp.iter().chain(&got.entropy);
            assert!(all.clone().count() == 2 * n && all.copied().all(f32::is_nan), "{held:?}, {columns:?}");
        }
    }
    let mut w = vec![0.5; v];
    w[256..512].fill(f32::NEG_INFINITY);
    let got = token_reward(&tensor(&[1.0], 1), &Panels::pack(&tensor(&w, v)).unwrap(), &[0]).unwrap();
    close(&got.logsumexp, &[0.5 + (v as f64 - 256.0).ln()], 1e-6);
    close(&got.entropy, &[(v as f64 - 256.0).ln()], 1e-6);
}

#[test]
fn token_reward_refuses_a_target_outside_the_vocabulary() {
    let panels = Panels::pack(&tensor(&noise(33 * 4, 1), 33)).unwrap();
    assert!(token_reward(&tensor(&noise(4, 2), 1), &panels, &[33]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// A row's bits are the same alone, anywhere in a batch, and with any number of threads.
    #[test]
    fn rows_do_not_see_their_neighbours(n in 1usize..60, pick in 0usize..60, threads in 1usize..4) {
        let (pick, d, v) = (pick % n, 48, 700);
        let hidden = tensor(&noise(n * d, 9), n);
        let weight = packed(&[&tensor(&noise(v * d, 10), v)]);
        let panels = weight.panels().unwrap();
        let targets: Vec<u32> = (0..n as u32).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (all, y) = pool.install(|| {
            (token_reward(&hidden, &panels, &targets).unwrap(), values(&linear(&hidden, &weight, None, None).unwrap()))
        });
        let row = hidden.narrow(0, pick, 1).unwrap().contiguous().unwrap();
        let alone = token_reward(&row, &panels, &targets[pick..=pick]).unwrap();
        prop_assert_eq!(alone.logit[0].to_bits(), all.logit[pick].to_bits());
        prop_assert_eq!(alone.logsumexp[0].to_bits(), all.logsumexp[pick].to_bits());
        prop_assert_eq!(alone.entropy[0].to_bits(), all.entropy[pick].to_bits());
        prop_assert_eq!(&values(&linear(&row, &weight, None, None).unwrap())[..], &y[pick * v..(pick + 1) * v]);
    }
}
