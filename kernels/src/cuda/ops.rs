//! The ops between the multiplies, one kernel each.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaView};

use super::gpu::{Gpu, launch};
use super::int8::Int8;
use super::matrix::{Matrix, Vector};
use super::multiply::{Extra, multiply};
use super::token_reward::{Form, token_reward};
use crate::rope::RopeTable;
use crate::token_reward::TokenReward;
use crate::weights::Float;

/// Threads of a block, as the kernels are compiled.
const THREADS: usize = 256;

/// Blocks that share a row of `columns`, which a thread moves `pack` at a time.
fn shares(columns: usize, pack: usize) -> usize {
    columns.div_ceil(pack * THREADS).max(1)
}

/// A weight to multiply by, `[out, k]`, with its bias.
#[derive(Debug)]
pub struct Linear {
    weight: Stored,
    /// `[1, out]`, in the types of an output without and with a residual.
    bias: Option<[Matrix; 2]>,
    /// Of a vocabulary head.
    form: OnceLock<Form>,
}

#[derive(Debug)]
enum Stored {
    Plain(Matrix),
    Int8(Int8),
}

impl Linear {
    /// Copies weights `[out_i, k]`, below one another, and their biases `[out_i]` to `gpu`.
    pub fn upload(gpu: &Arc<Gpu>, weights: &[&Tensor], bias: Option<&Tensor>, dtype: Float) -> Result<Self> {
        let weight = Stored::Plain(Matrix::upload_rows(gpu, weights, dtype)?);
        Self::new(gpu, weight, bias, dtype)
    }

    /// The same with one byte a weight; multiplied by as `dtype`, f16 or bf16.
    pub fn upload_int8(
        gpu: &Arc<Gpu>,
        weights: &[&Tensor],
        bias: Option<&Tensor>,
        dtype: Float,
    ) -> Result<Self> {
        let weight = Stored::Int8(Int8::upload_rows(gpu, weights, dtype)?);
        Self::new(gpu, weight, bias, dtype)
    }

    fn new(gpu: &Arc<Gpu>, weight: Stored, bias: Option<&Tensor>, dtype: Float) -> Result<Self> {
        let bias = match bias {
            None => None,
            Some(bias) => {
                let row = bias.unsqueeze(0)?;
                Some([Matrix::upload(gpu, &row, dtype)?, Matrix::upload(gpu, &row, Float::F32)?])
            }
        };
        Ok(Self { weight, bias, form: OnceLock::new() })
    }

    /// `[out, k]`. Errors where it is stored as int8.
    pub fn weight(&self) -> Result<&Matrix> {
        match &self.weight {
            Stored::Plain(weight) => Ok(weight),
            Stored::Int8(weight) => bail!("{weight:?} is only multiplied by"),
        }
    }

    /// The fused reward op over a vocabulary head, by the form that is the fastest on its device: found at the first call.
    pub fn token_reward(&self, hidden: &Matrix, targets: &[u32]) -> Result<TokenReward> {
        let weight = self.weight()?;
        let form = match self.form.get() {
            Some(form) => *form,
            None => {
                let found = Form::fastest(weight)?;
                *self.form.get_or_init(|| found)
            }
        };
        if targets.len() != hidden.rows {
            bail!("token_reward: hidden {hidden:?}, {} targets", targets.len());
        }
        let targets = weight.gpu.upload(targets)?;
        token_reward(hidden, weight, &targets.slice(..hidden.rows), form)
    }
}

/// `x [n, k]` times the weight transposed, plus its bias, plus `residual [n, out]` (f32); `[n, out]`, f32 with a residual.
pub fn linear(x: &Matrix, linear: &Linear, residual: Option<&Matrix>) -> Result<Matrix> {
    let bias = linear.bias.as_ref().map(|[same, f32]| if residual.is_some() { f32 } else { same });
    match &linear.weight {
        Stored::Plain(weight) => multiply(x, weight, Extra { bias, residual }),
        Stored::Int8(weight) => multiply(x, &weight.widen()?, Extra { bias, residual }),
    }
}

/// Rows `ids [n]` (below the table's rows) of `table [V, d]`, `[n, d]`, f32.
pub fn embed(table: &Matrix, ids: &CudaView<'_, u32>) -> Result<Matrix> {
    let (n, d) = (ids.len(), table.columns);
    let mut out = Matrix::uninit(&table.gpu, n, d, Float::F32)?;
    if n > 0 {
        let grid = (n, shares(d, 16 / table.dtype.size()), 1);
        let (rows, columns) = (n as i32, d as i32);
        launch!(&table.gpu, "embed", Some(table.dtype), grid, THREADS, 0;
            ids, &table.data, &mut out.data, &rows, &columns);
    }
    Ok(out)
}

/// RMSNorm of `rows` of `x [·, d]` (f32), of all without; `[n, d]` in the type that `weight` says.
pub fn rms_norm(x: &Matrix, rows: Option<&CudaView<'_, u32>>, weight: &Vector, eps: f32) -> Result<Matrix> {
    if x.columns != weight.len || x.dtype != Float::F32 {
        bail!("rms_norm: x {x:?} does not fit a weight of {}", weight.len);
    }
    let n = rows.map_or(x.rows, CudaView::len);
    let mut out = Matrix::uninit(&x.gpu, n, x.columns, weight.dtype)?;
    if n > 0 {
        let (count, columns) = (n as i32, x.columns as i32);
        let dtype = Some(weight.dtype);
        match rows {
            Some(rows) => launch!(&x.gpu, "rms_norm", dtype, (n, 1, 1), THREADS, 0;
                &x.data, rows, &weight.data, &eps, &mut out.data, &count, &columns),
            None => launch!(&x.gpu, "rms_norm", dtype, (n, 1, 1), THREADS, 0;
                &x.data, &NULL, &weight.data, &eps, &mut out.data, &count, &columns),
        }
    }
    Ok(out)
}

/// Where a kernel takes a null pointer.
const NULL: u64 = 0;

/// Angles of positions, `[positions, head_dim / 2]` each, f32.
pub struct Rotation {
    pub(super) cos: CudaSlice<f32>,
    pub(super) sin: CudaSlice<f32>,
    pub(super) half: usize,
    pub(super) positions: usize,
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rotation[{}, {}]", self.positions, self.half)
    }
}

impl Rotation {
    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Copies a table to `gpu`.
    pub fn upload(gpu: &Gpu, table: &RopeTable) -> Result<Self> {
        let (cos, sin, half) = table.tables();
        let rotation =
            Self { cos: gpu.upload(cos)?, sin: gpu.upload(sin)?, half, positions: table.positions() };
        gpu.synchronize()?;
        Ok(rotation)
    }
}

/// Rotates the queries and keys of `qkv [n, (q_heads + 2 kv_heads) · head_dim]` by the angles of `positions [n]`, all
/// below the rotation's, after the heads' norms (queries', keys', ε) where there are some.
pub fn qk_rope(
    mut qkv: Matrix,
    positions: &CudaView<'_, u32>,
    rotation: &Rotation,
    (q_heads, kv_heads): (usize, usize),
    norms: Option<(&Vector, &Vector, f32)>,
) -> Result<Matrix> {
    let head = 2 * rotation.half;
    let fits = qkv.columns == (q_heads + 2 * kv_heads) * head && qkv.rows == positions.len();
    if !fits || norms.is_some_and(|(q, k, _)| q.len != head || k.len != head) {
        bail!("qk_rope: {qkv:?}, {q_heads} and {kv_heads} heads of {head}, {} positions", positions.len());
    }
    if qkv.rows > 0 {
        let (n, q, kv, dim) = (qkv.rows as i32, q_heads as i32, kv_heads as i32, head as i32);
        let grid = (qkv.rows, (q_heads + kv_heads).div_ceil(THREADS / 32), 1);
        let dtype = Some(qkv.dtype);
        match norms {
            Some((q_norm, k_norm, eps)) => launch!(&qkv.gpu, "rope", dtype, grid, THREADS, 0;
                &mut qkv.data, positions, &rotation.cos, &rotation.sin, &q_norm.data, &k_norm.data, &eps,
                &n, &q, &kv, &dim),
            None => launch!(&qkv.gpu, "rope", dtype, grid, THREADS, 0;
                &mut qkv.data, positions, &rotation.cos, &rotation.sin, &NULL, &NULL, &0.0f32, &n, &q, &kv, &dim),
        }
    }
    Ok(qkv)
}

/// `gate_up [n, 2m]` (gate first) to `silu(gate) · up`, `[n, m]`.
pub fn swiglu(gate_up: &Matrix) -> Result<Matrix> {
    let (n, m) = (gate_up.rows, gate_up.columns / 2);
    if gate_up.columns == 0 || gate_up.columns % 2 == 1 {
        bail!("swiglu: an even width expected, got {}", gate_up.columns);
    }
    let mut out = Matrix::uninit(&gate_up.gpu, n, m, gate_up.dtype)?;
    if n > 0 {
        let grid = (n, shares(m, 16 / gate_up.dtype.size()), 1);
        let (rows, columns) = (n as i32, m as i32);
        launch!(&gate_up.gpu, "swiglu", Some(gate_up.dtype), grid, THREADS, 0;
            &gate_up.data, &mut out.data, &rows, &columns);
    }
    Ok(out)
}

/// The scalar head: `hidden [n, d] · weight [1, d] + bias`, `[n]`, on the host; the weight is f32. Waits for it.
pub fn row_dot(hidden: &Matrix, weight: &Linear, bias: f32) -> Result<Vec<f32>> {
    let weight = weight.weight()?;
    if weight.shape() != (1, hidden.columns) || weight.dtype != Float::F32 {
        bail!("row_dot: hidden {hidden:?}, weight {weight:?}");
    }
    let mut out = Matrix::uninit(&hidden.gpu, hidden.rows, 1, Float::F32)?;
    if hidden.rows > 0 {
        let (n, d) = (hidden.rows as i32, hidden.columns as i32);
        launch!(&hidden.gpu, "row_dot", Some(hidden.dtype), (hidden.rows, 1, 1), THREADS, 0;
            &hidden.data, &weight.data, &bias, &mut out.data, &n, &d);
    }
    out.download()?.flatten_all()?.to_vec1()
}
