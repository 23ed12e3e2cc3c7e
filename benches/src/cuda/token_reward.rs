//! The reward op in all its forms, beside its multiply alone.

use std::sync::Arc;

use qrm_kernels::Float;
use qrm_kernels::cuda::{self, Form, Gpu, Linear, Matrix, Plan};

use super::{matrix, median, noise};

/// n, d, V: response tokens of Qwen3-8B, Llama-3.2-1B and Llama-3-70B, in large batches and in one answer.
const SHAPES: [(&[usize], usize, usize); 3] =
    [(&[256, 2048, 8192], 4096, 151_936), (&[8192], 2048, 128_256), (&[2048], 8192, 128_256)];
/// Columns of the multiply alone, whose outputs are to fit.
const COLUMNS: usize = 32_768;

pub(super) fn run(gpu: &Arc<Gpu>) -> anyhow::Result<()> {
    for (ns, d, v) in SHAPES {
        let rows = noise(v, d, 0.1)?;
        let weight = Matrix::upload(gpu, &rows, Float::BF16)?;
        let columns = v.min(COLUMNS);
        let part = Linear::upload(gpu, &[&rows.narrow(0, 0, columns)?], None, Float::BF16)?;
        for n in ns {
            let hidden = matrix(gpu, *n, d, 1.0)?;
            let targets: Vec<u32> = (0..*n).map(|i| (i * 7919 % v) as u32).collect();
            let batch = cuda::Batch { ids: &targets, positions: &targets, ..Default::default() };
            let plan = Plan::new(gpu, &batch, 1)?;
            let say = |what: &str, columns: usize, seconds: f64| {
                let flops = 2.0 * (n * d * columns) as f64;
                let (ms, rate) = (seconds * 1e3, flops / seconds / 1e12);
                println!("{what} n={n} d={d} V={columns} bf16: {ms:.3} ms, {rate:.0} TFLOP/s");
            };
            for form in Form::available(&weight) {
                let run = || cuda::token_reward(&hidden, &weight, &plan.ids(), form).map(drop);
                say(&format!("token_reward {form:?}"), v, median(gpu, 1, run)?);
            }
            say("multiply alone", columns, median(gpu, 4, || cuda::linear(&hidden, &part, None).map(drop))?);
        }
    }
    Ok(())
}
