//! Attention over a forest: what a batch tells the kernels, uploaded once for all layers, and the keys and values that
//! are kept on the device between batches.

use std::sync::Arc;

use candle_core::{Result, bail};
use cudarc::driver::{CudaSlice, CudaView};

use super::gpu::{Gpu, launch};
use super::matrix::Matrix;
use crate::attention::{BLOCK, Segment, chain, check_order, rows};
use crate::weights::Float;

/// Rows (queries times heads that share a key) that a block takes: as many as the kernels on tensor cores have at once.
const TASK_ROWS: usize = 128;
/// Numbers of an `AttentionTask`.
const TASK: usize = 4;

/// A batch as the kernels read it: one upload of 32-bit numbers.
pub struct Plan {
    numbers: CudaSlice<u32>,
    /// Where each list begins; the last one's end is that of the numbers.
    ids: usize,
    positions: usize,
    read: usize,
    keep_rows: usize,
    keep_places: usize,
    tasks: usize,
    key_rows: usize,
    end: usize,
    /// Rows of the batch.
    n: usize,
    /// Slots that a pool must have for it.
    slots: usize,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan[{} rows, {} tasks]", self.n, (self.key_rows - self.tasks) / TASK)
    }
}

/// What a plan is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// Token ids, `[n]`.
    pub ids: &'a [u32],
    /// Their positions, `[n]`.
    pub positions: &'a [u32],
    /// Runs of tokens, parents first; those that start at `n` or later are kept blocks.
    pub segments: &'a [Segment],
    /// Of each kept block: its slot in the [`Pool`].
    pub slots: &'a [usize],
    /// Rows whose hidden states the head reads.
    pub read: &'a [u32],
    /// Blocks of [`BLOCK`] rows whose keys and values are to be kept, each with its slot.
    pub keep: &'a [(usize, Vec<u32>)],
}

impl Plan {
    /// Lays out and uploads a batch for heads of which `group` share a key.
    pub fn new(gpu: &Arc<Gpu>, batch: &Batch<'_>, group: usize) -> Result<Self> {
        check_order(batch.segments)?;
        let n = batch.ids.len();
        let slots = batch.slots.iter().chain(batch.keep.iter().map(|(slot, _)| slot)).max();
        let slots = slots.map_or(0, |last| last + 1);
        let queries = (TASK_ROWS / group.max(1)).max(1);
        let (mut tasks, mut key_rows) = (Vec::new(), Vec::new());
        for (i, segment) in batch.segments.iter().enumerate().filter(|(_, s)| s.start < n) {
            if segment.start + segment.len > n {
                bail!("attention: {segment:?} of {n} rows");
            }
            let chain = chain(batch.segments, i);
            let first_key = key_rows.len() as u32;
            for row in rows(&chain, 0..segment.position + segment.len) {
                let row = match row.checked_sub(n) {
                    None => row,
                    Some(kept) => match batch.slots.get(kept / BLOCK) {
                        Some(slot) => n + slot * BLOCK + kept % BLOCK,
                        None => bail!("attention: {segment:?} continues a block that is not kept"),
                    },
                };
                key_rows.push(row as u32);
            }
            for offset in (0..segment.len).step_by(queries) {
                let len = queries.min(segment.len - offset);
                let (row, position) = (segment.start + offset, segment.position + offset);
                tasks.push([row as u32, len as u32, position as u32, first_key]);
            }
        }
        // The longest first, so that none is left alone at the end.
        tasks.sort_by_key(|[row, len, position, _]| {
            (std::cmp::Reverse(u64::from(*len) * u64::from(len + position)), *row)
        });
        // Tasks are read as 16 bytes: they come first.
        let mut numbers: Vec<u32> = tasks.as_flattened().to_vec();
        let mut list = |values: &[u32]| {
            let begin = numbers.len();
            numbers.extend_from_slice(values);
            begin
        };
        let key_rows = list(&key_rows);
        let (ids, positions, read) = (list(batch.ids), list(batch.positions), list(batch.read));
        let (mut keep_rows, mut keep_places) = (Vec::new(), Vec::new());
        for (slot, rows) in batch.keep {
            if rows.len() != BLOCK || rows.iter().any(|row| *row as usize >= n) {
                bail!("attention: {} rows of {n} are to be kept as a block", rows.len());
            }
            keep_rows.extend_from_slice(rows);
            keep_places.extend((slot * BLOCK) as u32..((slot + 1) * BLOCK) as u32);
        }
        let (keep_rows, keep_places) = (list(&keep_rows), list(&keep_places));
        let end = numbers.len();
        Ok(Self {
            numbers: gpu.upload(&numbers)?,
            ids,
            positions,
            read,
            keep_rows,
            keep_places,
            tasks: 0,
            key_rows,
            end,
            n,
            slots,
        })
    }

    /// Token ids, `[n]`.
    pub fn ids(&self) -> CudaView<'_, u32> {
        self.numbers.slice(self.ids..self.positions)
    }

    /// Positions, `[n]`.
    pub fn positions(&self) -> CudaView<'_, u32> {
        self.numbers.slice(self.positions..self.read)
    }

    /// Rows whose hidden states the head reads.
    pub fn read(&self) -> CudaView<'_, u32> {
        self.numbers.slice(self.read..self.keep_rows)
    }
}

/// Keys and values of one layer that outlive a batch: slots of [`BLOCK`] rows `[2 · kv_heads · head_dim]`.
pub type Pool = Matrix;

/// A pool of `slots` slots.
pub fn pool(gpu: &Arc<Gpu>, slots: usize, width: usize, dtype: Float) -> Result<Pool> {
    Matrix::uninit(gpu, slots * BLOCK, width, dtype)
}

/// Whether a pool has what a plan names.
fn fits(pool: &Pool, plan: &Plan, width: usize, dtype: Float) -> bool {
    pool.columns == width && pool.dtype == dtype && plan.slots * BLOCK <= pool.rows
}

/// Copies the keys and values that the plan wants kept to the pool.
pub fn keep(qkv: &Matrix, plan: &Plan, (q_heads, kv_heads): (usize, usize), pool: &mut Pool) -> Result<()> {
    let count = plan.keep_places - plan.keep_rows;
    let head = qkv.columns / (q_heads + 2 * kv_heads).max(1);
    if qkv.rows != plan.n || !fits(pool, plan, 2 * kv_heads * head, qkv.dtype) {
        bail!("attention: {qkv:?} of {plan:?} does not fit {pool:?}");
    }
    if count > 0 {
        let rows = plan.numbers.slice(plan.keep_rows..plan.keep_places);
        let places = plan.numbers.slice(plan.keep_places..plan.end);
        let (n, q, kv, dim) = (count as i32, q_heads as i32, kv_heads as i32, head as i32);
        let gpu = qkv.gpu.clone();
        launch!(&gpu, "keys_values", Some(qkv.dtype), (count, 1, 1), 256, 0;
            &qkv.data, &rows, &places, &mut pool.data, &n, &q, &kv, &dim);
    }
    Ok(())
}

/// A kernel, all with the same arguments, and what a block of it has.
struct Kernel {
    name: &'static str,
    threads: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl Kernel {
    /// The fastest that has heads of `head` elements.
    fn of(gpu: &Gpu, dtype: Float, head: usize) -> Self {
        // `Shared` of attention_wgmma.cu: four stages of 64 keys and values, and their barriers, from an address that is a
        // multiple of 1024 on.
        let shared = 4 * 2 * 64 * 2 * head + 1024 + 1024;
        let wgmma = Self { name: "attention_wgmma", threads: 384, shared };
        match dtype != Float::F32 && head.is_multiple_of(16) && head <= 128 {
            true if matches!(head, 64 | 128) && gpu.has_wgmma(wgmma.name, dtype, shared) => wgmma,
            true => Self { name: "attention_mma", threads: 256, shared: 512 * (head + 8) + 1024 },
            false => {
                Self { name: "attention", threads: 128, shared: 4 * (32 * head + 32 * (head + 4) + 32 * 32) }
            }
        }
    }
}

/// `qkv [n, (q_heads + 2 kv_heads) · head_dim]`, rotated, to `[n, q_heads · head_dim]`, as
/// [`forest_attention`](crate::forest_attention()); kept blocks are read from `pool`.
pub fn forest_attention(
    qkv: &Matrix,
    plan: &Plan,
    pool: Option<&Pool>,
    q_heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) -> Result<Matrix> {
    let heads = q_heads + 2 * kv_heads;
    if heads == 0
        || !qkv.columns.is_multiple_of(heads)
        || qkv.rows != plan.n
        || !q_heads.is_multiple_of(kv_heads.max(1))
    {
        bail!("attention: {q_heads} and {kv_heads} heads, {qkv:?}, {plan:?}");
    }
    let head = qkv.columns / heads;
    if head == 0 || head > 256 || !head.is_multiple_of(8) {
        bail!("attention: heads of {head}; on a GPU a multiple of 8 up to 256 is needed");
    }
    let has_kept = match pool {
        Some(pool) => fits(pool, plan, 2 * kv_heads * head, qkv.dtype),
        None => plan.slots == 0,
    };
    if !has_kept {
        bail!("attention: {pool:?} is not what {plan:?} continues");
    }
    let mut out = Matrix::uninit(&qkv.gpu, qkv.rows, q_heads * head, qkv.dtype)?;
    let count = (plan.key_rows - plan.tasks) / TASK;
    if count == 0 {
        return Ok(out);
    }
    let tasks = plan.numbers.slice(plan.tasks..plan.key_rows);
    let key_rows = plan.numbers.slice(plan.key_rows..plan.ids);
    let kept = &pool.unwrap_or(qkv).data;
    let (n, q, kv, dim) = (qkv.rows as i32, q_heads as i32, kv_heads as i32, head as i32);
    let window = window.unwrap_or(0) as i32;
    let grid = (count, kv_heads, 1);
    let kernel = Kernel::of(&qkv.gpu, qkv.dtype, head);
    launch!(&qkv.gpu, kernel.name, Some(qkv.dtype), grid, kernel.threads, kernel.shared;
        &qkv.data, kept, &tasks, &key_rows, &mut out.data, &n, &q, &kv, &dim, &window);
    Ok(out)
}
