//! The CUDA ops on this machine's first GPU: the reward op in all its forms beside its multiply alone, and attention.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use qrm_kernels::Float;
use qrm_kernels::Segment;
use qrm_kernels::cuda::{self, Form, Gpu, Linear, Matrix, Plan};

/// n, d, V: one batch of response tokens of models of 7, 1 and 70 billion parameters.
const SHAPES: [(usize, usize, usize); 3] =
    [(8192, 4096, 151_936), (8192, 2048, 128_256), (2048, 8192, 128_256)];
/// Timed runs; the median counts.
const RUNS: usize = 9;

fn ramp(rows: usize, columns: usize, scale: f64) -> candle_core::Result<Tensor> {
    // Cheap, and no two rows alike.
    let values = Tensor::arange(0u32, (rows * columns) as u32, &Device::Cpu)?.to_dtype(DType::F32)?;
    (values.sin()? * scale)?.reshape((rows, columns))
}

fn median(gpu: &Gpu, mut run: impl FnMut() -> candle_core::Result<()>) -> anyhow::Result<f64> {
    run()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        gpu.synchronize()?;
        let start = Instant::now();
        run()?;
        gpu.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

pub(crate) fn run() -> anyhow::Result<()> {
    let gpu = Gpu::open(0)?;
    println!("{}, compute capability {:?}", gpu.name()?, gpu.capability());
    for (n, d, v) in SHAPES {
        let hidden = Matrix::upload(&gpu, &ramp(n, d, 1.0)?, Float::BF16)?;
        let weight = Matrix::upload(&gpu, &ramp(v, d, 0.1)?, Float::BF16)?;
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let batch = cuda::Batch { ids: &targets, positions: &targets, ..Default::default() };
        let plan = Plan::new(&gpu, &batch, 1)?;
        let flops = 2.0 * (n * d * v) as f64;
        for form in Form::available(&weight) {
            let seconds = median(&gpu, || cuda::token_reward(&hidden, &weight, &plan.ids(), form).map(drop))?;
            println!(
                "token_reward {form:?} n={n} d={d} V={v} bf16: {:.2} ms, {:.0} TFLOP/s",
                seconds * 1e3,
                flops / seconds / 1e12
            );
        }
        drop(weight);
        // The multiply alone, of as many columns as fit.
        let columns = v.min(32_768);
        let part = Linear::upload(&gpu, &[&ramp(columns, d, 0.1)?], None, Float::BF16)?;
        let seconds = median(&gpu, || cuda::linear(&hidden, &part, None).map(drop))?;
        let flops = 2.0 * (n * d * columns) as f64;
        println!("multiply alone, {columns} columns: {:.0} TFLOP/s", flops / seconds / 1e12);
    }
    for (prompt, responses, length) in [(0, 4, 2048), (1024, 8, 512)] {
        let (q_heads, kv_heads, head) = (32, 8, 128);
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
        let plan = Plan::new(&gpu, &batch, q_heads / kv_heads)?;
        let qkv = Matrix::upload(&gpu, &ramp(n, (q_heads + 2 * kv_heads) * head, 1.0)?, Float::BF16)?;
        let seconds =
            median(&gpu, || cuda::forest_attention(&qkv, &plan, None, q_heads, kv_heads, None).map(drop))?;
        let pairs: usize = segments.iter().map(|s| s.len * (2 * s.position + s.len + 1) / 2).sum();
        let flops = 4.0 * (pairs * q_heads * head) as f64;
        println!(
            "attention {responses} x {length} after {prompt}, {q_heads}/{kv_heads} heads of {head}: {:.2} ms, {:.0} TFLOP/s",
            seconds * 1e3,
            flops / seconds / 1e12
        );
    }
    Ok(())
}
