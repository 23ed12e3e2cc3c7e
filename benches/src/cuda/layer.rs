//! The other ops of a layer, at the shapes of a model of 7 billion parameters.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use qrm_kernels::cuda::{self, Gpu, Linear, Matrix, Plan, Rotation, Vector};
use qrm_kernels::{BLOCK, Float, RopeTable};

use super::{matrix, median, noise};

const D: usize = 4096;
const M: usize = 14_336;
const HEADS: (usize, usize) = (32, 8);
const HEAD: usize = 128;
/// Tokens of a batch: a large one, and one that launches may bound.
const BATCHES: [usize; 2] = [8192, 256];
const TOGETHER: usize = 16;

pub(super) fn run(gpu: &Arc<Gpu>) -> anyhow::Result<()> {
    for n in BATCHES {
        moved(gpu, n)?;
        multiplied(gpu, n)?;
    }
    Ok(())
}

/// What memory bounds.
fn moved(gpu: &Arc<Gpu>, n: usize) -> anyhow::Result<()> {
    let (q_heads, kv_heads) = HEADS;
    let width = (q_heads + 2 * kv_heads) * HEAD;
    let say = |what: &str, bytes: usize, seconds: f64| {
        let rate = bytes as f64 / seconds / 1e12;
        println!("{what} n={n}: {:.1} us, {rate:.2} TB/s", seconds * 1e6);
    };
    let ids: Vec<u32> = (0..n as u32).collect();
    let keep: Vec<(usize, Vec<u32>)> =
        ids.chunks_exact(BLOCK).enumerate().map(|(slot, rows)| (slot, rows.to_vec())).collect();
    let batch = cuda::Batch { ids: &ids, positions: &ids, keep: &keep, ..Default::default() };
    let plan = Plan::new(gpu, &batch, 1)?;

    let table = matrix(gpu, n, D, 1.0)?;
    say("embed", n * 6 * D, median(gpu, TOGETHER, || cuda::embed(&table, &plan.ids()).map(drop))?);

    let x = Matrix::upload(gpu, &noise(n, D, 1.0)?, Float::F32)?;
    let norm = Vector::upload(gpu, &Tensor::ones(D, DType::F32, &Device::Cpu)?, Float::BF16)?;
    let run = || cuda::rms_norm(&x, None, &norm, 1e-6).map(drop);
    say("rms_norm", n * 6 * D, median(gpu, TOGETHER, run)?);

    let inv_freq: Vec<f64> = (0..HEAD / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / HEAD as f64)).collect();
    let rotation = Rotation::upload(gpu, &RopeTable::new(&inv_freq, n))?;
    let mut qkv = Some(matrix(gpu, n, width, 1.0)?);
    let run = || {
        let Some(x) = qkv.take() else { return Ok(()) };
        qkv = Some(cuda::qk_rope(x, &plan.positions(), &rotation, HEADS, None)?);
        Ok(())
    };
    let seconds = median(gpu, TOGETHER, run)?;
    say("qk_rope", n * 4 * ((q_heads + kv_heads) * HEAD + HEAD), seconds);

    let qkv = matrix(gpu, n, width, 1.0)?;
    let mut pool = cuda::pool(gpu, keep.len(), 2 * kv_heads * HEAD, Float::BF16)?;
    let run = || cuda::keep(&qkv, &plan, HEADS, &mut pool);
    say("keys_values", n * 8 * kv_heads * HEAD, median(gpu, TOGETHER, run)?);

    let gate_up = matrix(gpu, n, 2 * M, 1.0)?;
    say("swiglu", n * 6 * M, median(gpu, TOGETHER, || cuda::swiglu(&gate_up).map(drop))?);
    Ok(())
}

/// What multiplies bound: cuBLASLt's, and the same with weights of one byte.
fn multiplied(gpu: &Arc<Gpu>, n: usize) -> anyhow::Result<()> {
    let (q_heads, kv_heads) = HEADS;
    for (what, k, out, adds) in [
        ("qkv", D, (q_heads + 2 * kv_heads) * HEAD, false),
        ("o", q_heads * HEAD, D, true),
        ("gate_up", D, 2 * M, false),
        ("down", M, D, true),
    ] {
        let x = matrix(gpu, n, k, 1.0)?;
        let weight = noise(out, k, 0.1)?;
        let residual = Matrix::upload(gpu, &noise(n, out, 1.0)?, Float::F32)?;
        for (held, linear) in [
            ("bf16", Linear::upload(gpu, &[&weight], None, Float::BF16)?),
            ("int8", Linear::upload_int8(gpu, &[&weight], None, Float::BF16)?),
        ] {
            let run = || cuda::linear(&x, &linear, adds.then_some(&residual)).map(drop);
            let seconds = median(gpu, 4, run)?;
            let rate = 2.0 * (n * k * out) as f64 / seconds / 1e12;
            println!("linear {what} {held} n={n}: {:.1} us, {rate:.0} TFLOP/s", seconds * 1e6);
        }
    }
    Ok(())
}
