//! The fused reward op: what the vocabulary head says of one chosen token per row, without ever holding `[n, V]`.
//!
//! Three forms, each for what it is best at; which is the fastest for a head is found by measuring on the device.
//! Sums run in an order that depends on V alone in the two fused ones.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};

use super::gpu::launch;
use super::matrix::Matrix;
use super::multiply::logits;
use super::wgmma::{self, wgmma};
use crate::token_reward::TokenReward;
use crate::weights::Float;

/// How the op is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// cuBLASLt writes a chunk of the logits, sized to stay in L2, and a kernel consumes it. Any type, any width.
    Chunks,
    /// One kernel of `mma.sync`: no logit leaves its registers. f16 and bf16, a width that is a multiple of 8.
    Mma,
    /// The same of `wgmma` and TMA, on compute capability 9.0.
    Wgmma,
}

/// Rows and columns of a chunk of [`Form::Chunks`]: 16 MiB of f32 logits.
const CHUNK: (usize, usize) = (2048, 2048);
/// Threads that share a row of a chunk: each has 16 of its logits.
const REDUCERS: usize = CHUNK.1 / 16;
/// Columns of a split of the fused forms, rows of their blocks: as in `split.cuh` and the kernels.
const SPLIT: usize = 1024;
const BLOCK_ROWS: usize = 128;
/// Hidden states that pass the weight together and meanwhile stay in L2, bytes.
const RESIDENT: usize = 16 << 20;
/// Rows and runs of a measurement.
const MEASURED: (usize, usize) = (2048, 3);

/// `RowState` of `row_state.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RowState {
    max: f32,
    target: f32,
    sum: f64,
    moment: f64,
}

// SAFETY: plain numbers in C's layout.
unsafe impl DeviceRepr for RowState {}

const EMPTY: RowState = RowState { max: f32::NEG_INFINITY, target: f32::NEG_INFINITY, sum: 0.0, moment: 0.0 };

impl Form {
    /// The forms that can compute `weight [V, d]` on its device.
    pub fn available(weight: &Matrix) -> Vec<Self> {
        let fused = weight.dtype != Float::F32 && weight.columns.is_multiple_of(8) && weight.columns > 0;
        let mut forms = vec![Self::Chunks];
        forms.extend(fused.then_some(Self::Mma));
        forms.extend((fused && wgmma::is_there(&weight.gpu, weight.dtype)).then_some(Self::Wgmma));
        forms
    }

    /// The fastest for `weight [V, d]`, measured on its device on as many rows as a large batch has; of cards of one kind on
    /// the first, so that all give the same bits.
    pub fn fastest(weight: &Matrix) -> Result<Self> {
        type Kind = ((i32, i32), usize, usize, Float);
        static FOUND: Mutex<Vec<(Kind, Form)>> = Mutex::new(Vec::new());
        let kind = (weight.gpu.capability(), weight.rows, weight.columns, weight.dtype);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, form)) = found.iter().find(|(of, _)| *of == kind) {
            return Ok(*form);
        }
        let form = Self::measured(weight)?;
        found.push((kind, form));
        Ok(form)
    }

    fn measured(weight: &Matrix) -> Result<Self> {
        let gpu = &weight.gpu;
        let (rows, runs) = MEASURED;
        // Numbers of all sizes: multiplies of zeros take less power, and with it less time.
        let scattered = |i: usize| (i.wrapping_mul(0x9E37_79B9) >> 12 & 0xffff) as f32 / 32_768.0 - 1.0;
        let values: Vec<f32> = (0..rows * weight.columns).map(scattered).collect();
        let hidden = Tensor::from_vec(values, (rows, weight.columns), &Device::Cpu)?;
        // On this thread alone: another's work must not be waited for under the lock.
        let hidden = Matrix::upload(gpu, &hidden.to_dtype(weight.dtype.dtype())?, weight.dtype)?;
        let targets = gpu.upload(&vec![0u32; rows])?;
        let mut best = (Duration::MAX, Self::Chunks);
        for form in Self::available(weight) {
            for _ in 0..runs {
                gpu.synchronize()?;
                let start = Instant::now();
                token_reward(&hidden, weight, &targets.slice(..), form)?; // comes back with the result
                let took = start.elapsed();
                if took < best.0 {
                    best = (took, form);
                }
            }
        }
        Ok(best.1)
    }
}

/// For each row of `hidden [n, d]` and its `targets [n]` (below V): logit, logsumexp, max and entropy over
/// `weight [V, d]`, on the host. Waits for it.
pub fn token_reward(
    hidden: &Matrix,
    weight: &Matrix,
    targets: &CudaView<'_, u32>,
    form: Form,
) -> Result<TokenReward> {
    let (n, vocabulary) = (hidden.rows, weight.rows);
    if hidden.columns != weight.columns || hidden.dtype != weight.dtype || targets.len() != n {
        bail!("token_reward: hidden {hidden:?}, {} targets, {weight:?}", targets.len());
    }
    if !Form::available(weight).contains(&form) {
        bail!("token_reward: {form:?} does not compute {weight:?}");
    }
    if n == 0 {
        return Ok(TokenReward::default());
    }
    let (partials, splits) = match form {
        Form::Chunks => (chunks(hidden, weight, targets)?, 1),
        Form::Mma | Form::Wgmma => (fused(hidden, weight, targets, form)?, vocabulary.div_ceil(SPLIT)),
    };
    let mut out = Matrix::uninit(&hidden.gpu, 4, n, Float::F32)?;
    let (splits, count) = (splits as i32, n as i32);
    launch!(&hidden.gpu, "token_reward_merge", None, (n.div_ceil(256), 1, 1), 256, 0;
        &partials, &splits, &mut out.data, &count);
    let mut rows = out.download()?.to_vec2::<f32>()?.into_iter();
    let mut next = || rows.next().unwrap_or_default();
    Ok(TokenReward { logit: next(), logsumexp: next(), max: next(), entropy: next() })
}

/// Form (a): the states of all rows, `[n]`.
fn chunks(hidden: &Matrix, weight: &Matrix, targets: &CudaView<'_, u32>) -> Result<CudaSlice<RowState>> {
    let gpu = &hidden.gpu;
    let mut states = gpu.upload(&vec![EMPTY; hidden.rows])?;
    for start in (0..hidden.rows).step_by(CHUNK.0) {
        let rows = start..(start + CHUNK.0).min(hidden.rows);
        let (targets, mut states) = (targets.slice(rows.clone()), states.slice_mut(rows.clone()));
        let mut chunk: Option<Matrix> = None;
        for first in (0..weight.rows).step_by(CHUNK.1) {
            let columns = CHUNK.1.min(weight.rows - first);
            let mut z = match chunk.take().filter(|z| z.columns == columns) {
                Some(z) => z,
                None => Matrix::uninit(gpu, rows.len(), columns, Float::F32)?,
            };
            logits((hidden, start), (weight, first), &mut z)?;
            let (ld, first, columns, n) = (columns as i32, first as i32, columns as i32, rows.len() as i32);
            launch!(gpu, "logits_reduce", Some(Float::F32), (rows.len(), 1, 1), REDUCERS, 0;
                &z.data, &ld, &first, &columns, &targets, &mut states, &n);
            chunk = Some(z);
        }
    }
    Ok(states)
}

/// Forms (b) and (c): the states of all rows over each split, `[splits, n]`.
fn fused(
    hidden: &Matrix,
    weight: &Matrix,
    targets: &CudaView<'_, u32>,
    form: Form,
) -> Result<CudaSlice<RowState>> {
    let (gpu, n, d) = (&hidden.gpu, hidden.rows, hidden.columns);
    let splits = weight.rows.div_ceil(SPLIT);
    let mut partials = gpu.uninit::<RowState>(splits * n)?;
    let tiles = n.div_ceil(BLOCK_ROWS);
    let together = (RESIDENT / (BLOCK_ROWS * d * hidden.dtype.size())).clamp(1, tiles);
    // Two blocks of a cluster fetch the weight together; what has one tile of rows has nobody to share it with.
    let cluster = if form == Form::Wgmma && tiles > 1 { 2 } else { 1 };
    let together = together.next_multiple_of(cluster);
    let grid = (together, splits, tiles.div_ceil(together));
    let (rows, vocabulary, width) = (n as i32, weight.rows as i32, d as i32);
    let dtype = Some(hidden.dtype);
    match form {
        Form::Wgmma => wgmma(hidden, weight, targets, &mut partials, grid, cluster)?,
        _ => launch!(gpu, "token_reward_mma", dtype, grid, 256, MMA_SHARED;
            &hidden.data, &weight.data, targets, &mut partials, &rows, &vocabulary, &width),
    }
    Ok(partials)
}

/// `Shared` of `token_reward_mma.cu`: four stages of 128 + 256 rows of 32, the rows' targets and their logits.
const MMA_SHARED: usize = 4 * (128 + 256) * 32 * 2 + 128 * 4 + 128 * 4;
