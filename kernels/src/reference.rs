//! Every op in plain f64, as its definition reads. Slow and obvious: the truth that tests compare with.

use crate::attention::Segment;

/// `x [n, k]` times `w [out, k]` transposed, `[n, out]`.
pub fn linear(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks(k).flat_map(|row| w.chunks(k).map(move |w| dot(row, w))).collect()
}

/// RMSNorm of one row.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(v, w)| v / (mean + eps).sqrt() * w).collect()
}

/// SwiGLU of one row `[2m]`.
pub fn swiglu(gate_up: &[f64]) -> Vec<f64> {
    let (gate, up) = gate_up.split_at(gate_up.len() / 2);
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// RoPE of one head `[2h]` by angles `position · inv_freq [h]`.
pub fn rope(x: &[f64], position: f64, inv_freq: &[f64]) -> Vec<f64> {
    let half = inv_freq.len();
    let mut out = x.to_vec();
    for i in 0..half {
        let (sin, cos) = (position * inv_freq[i]).sin_cos();
        out[i] = x[i] * cos - x[i + half] * sin;
        out[i + half] = x[i + half] * cos + x[i] * sin;
    }
    out
}

/// Attention over a forest; shapes as [`crate::forest_attention`].
pub fn forest_attention(
    qkv: &[f64],
    segments: &[Segment],
    q_heads: usize,
    kv_heads: usize,
    head: usize,
    window: Option<usize>,
) -> Vec<f64> {
    let width = (q_heads + 2 * kv_heads) * head;
    let mut out = Vec::new();
    for segment in segments {
        let mut rows: Vec<usize> = Vec::new();
        let mut chain = vec![segment];
        while let Some(parent) = chain[chain.len() - 1].parent {
            chain.push(&segments[parent]);
        }
        for s in chain.iter().rev() {
            rows.extend(s.start..s.start + s.len);
        }
        for t in 0..segment.len {
            let position = segment.position + t;
            let low = window.map_or(0, |w| (position + 1).saturating_sub(w));
            for h in 0..q_heads {
                let q = &qkv[(segment.start + t) * width + h * head..][..head];
                let kv = h / (q_heads / kv_heads);
                let at = |row: usize, section: usize| &qkv[row * width + (section + kv) * head..][..head];
                let scores: Vec<f64> = rows[low..=position]
                    .iter()
                    .map(|row| {
                        q.iter().zip(at(*row, q_heads)).map(|(a, b)| a * b).sum::<f64>()
                            / (head as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..head).map(|d| {
                    let values = rows[low..=position].iter().map(|row| at(*row, q_heads + kv_heads)[d]);
                    values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum
                }));
            }
        }
    }
    out
}

/// `(logit, logsumexp, max, entropy)` of each row; shapes as [`crate::token_reward()`].
pub fn token_reward(hidden: &[f64], weight: &[f64], targets: &[u32], d: usize) -> Vec<[f64; 4]> {
    hidden
        .chunks(d)
        .zip(targets)
        .map(|(h, target)| {
            let logits = linear(h, weight, d);
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            let entropy = logits.iter().map(|z| z - max - log_sum).map(|l| -l.exp() * l).sum();
            [logits[*target as usize], max + log_sum, max, entropy]
        })
        .collect()
}
