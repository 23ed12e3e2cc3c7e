//! Attention over a forest: trajectories alone, and groups below a prompt.

use std::sync::Arc;

use qrm_kernels::Segment;
use qrm_kernels::cuda::{self, Gpu, Plan};

use super::{matrix, median};

const HEADS: (usize, usize, usize) = (32, 8, 128);
/// Prompt, responses, their length.
const FORESTS: [(usize, usize, usize); 4] = [(0, 32, 256), (0, 4, 2048), (0, 1, 8192), (1024, 8, 512)];

pub(super) fn run(gpu: &Arc<Gpu>) -> anyhow::Result<()> {
    let (q_heads, kv_heads, head) = HEADS;
    for (prompt, responses, length) in FORESTS {
        let mut segments = Vec::new();
        if prompt > 0 {
            segments.push(Segment { start: 0, len: prompt, parent: None, position: 0 });
        }
        for r in 0..responses {
            let parent = (prompt > 0).then_some(0);
            segments.push(Segment { start: prompt + r * length, len: length, parent, position: prompt });
        }
        let n = prompt + responses * length;
        let ids = vec![0u32; n];
        let batch = cuda::Batch { ids: &ids, positions: &ids, segments: &segments, ..Default::default() };
        let plan = Plan::new(gpu, &batch, q_heads / kv_heads)?;
        let qkv = matrix(gpu, n, (q_heads + 2 * kv_heads) * head, 1.0)?;
        let run = || cuda::forest_attention(&qkv, &plan, None, q_heads, kv_heads, None).map(drop);
        let seconds = median(gpu, 4, run)?;
        let pairs: usize = segments.iter().map(|s| s.len * (2 * s.position + s.len + 1) / 2).sum();
        let flops = 4.0 * (pairs * q_heads * head) as f64;
        println!(
            "attention {responses} x {length} after {prompt}, {q_heads}/{kv_heads} heads of {head}: {:.3} ms, {:.0} TFLOP/s",
            seconds * 1e3,
            flops / seconds / 1e12
        );
    }
    Ok(())
}
