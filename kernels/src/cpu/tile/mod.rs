//! The multiply's inner tile: up to [`MAX_ROWS`] rows times one panel of [`WIDTH`] columns.
//!
//! Each output element is a single chain of multiply-adds over k in ascending order, so its bits do not depend on how
//! many rows the tile holds.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::isa::Isa;
#[cfg(target_arch = "aarch64")]
use neon::neon;
#[cfg(target_arch = "x86_64")]
use x86::{avx2, avx512};

/// Columns of a panel.
pub(crate) const WIDTH: usize = 32;
/// Most rows of one tile.
pub(crate) const MAX_ROWS: usize = 14;

/// Sixteen floats on a cache line of their own; panels are vectors of these.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

/// One panel as plain floats, `[k, WIDTH]`.
pub(crate) fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: `Line` is `repr(C)` over `[f32; 16]` and has its size, so the memory is 16 floats a line.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// Mutable [`floats`].
pub(crate) fn floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `floats`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// A tile of results, row `i` at `i * WIDTH`.
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [f32; MAX_ROWS * WIDTH]);

impl Tile {
    pub(crate) fn new() -> Self {
        Self([0.0; MAX_ROWS * WIDTH])
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> &[f32; WIDTH] {
        &self.0.as_chunks().0[i]
    }
}

/// Walks a tile of `$m` rows in pieces of up to 6 rows and 16 columns: what sixteen registers of 8 floats hold, or thirty-two
/// of 4. `$piece::<rows>(a, stride, k, panel, out)` has the operands of the tile; a column of the panel is `$column` numbers.
macro_rules! in_pieces {
    ($piece:ident::<$m:ident>($a:ident, $stride:ident, $k:ident, $panel:ident, $out:ident), $column:literal) => {
        for half in [0, 16] {
            let mut i = 0;
            while i < $m {
                // SAFETY: rows `i..` of the operands and half of their columns, within what the caller promises of all.
                unsafe {
                    let (a, panel) = ($a.add(i * $stride), $panel.add(half * $column));
                    let out = $out.add(i * WIDTH + half);
                    match $m - i {
                        1 => $piece::<1>(a, $stride, $k, panel, out),
                        2 => $piece::<2>(a, $stride, $k, panel, out),
                        3 => $piece::<3>(a, $stride, $k, panel, out),
                        4 => $piece::<4>(a, $stride, $k, panel, out),
                        5 => $piece::<5>(a, $stride, $k, panel, out),
                        _ => $piece::<6>(a, $stride, $k, panel, out),
                    }
                }
                i += 6;
            }
        }
    };
}
pub(crate) use in_pieces;

/// `out[i, j] = Σ_k a[i · stride + k] · panel[k, j]` for `rows` ≤ [`MAX_ROWS`] rows.
pub(crate) fn multiply(
    isa: Isa,
    a: &[f32],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[Line],
    out: &mut Tile,
) {
    assert!(rows <= MAX_ROWS && panel.len() * 16 >= k * WIDTH);
    assert!(rows == 0 || a.len() >= (rows - 1) * stride + k);
    let panel = panel.as_ptr().cast::<f32>();
    macro_rules! dispatch {
        ($kernel:ident: $($n:literal)*) => {
            match rows {
                // SAFETY: the assertions above bound every access; `isa` was detected on this machine.
                $($n => unsafe { $kernel::<$n>(a.as_ptr(), stride, k, panel, out.0.as_mut_ptr()) },)*
                _ => {}
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => dispatch!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => dispatch!(avx2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => dispatch!(neon: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        Isa::Portable => dispatch!(portable: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
}

/// # Safety
/// `a` holds `M` rows of `k` floats `stride` apart, `panel` `k * WIDTH` floats, `out` `M * WIDTH`.
unsafe fn portable<const M: usize>(a: *const f32, stride: usize, k: usize, panel: *const f32, out: *mut f32) {
    for i in 0..M {
        let mut acc = [0.0f32; WIDTH];
        for kk in 0..k {
            // SAFETY: `i < M` and `kk < k`, within the bounds the caller promises.
            let (x, b) = unsafe { (*a.add(i * stride + kk), &*panel.add(kk * WIDTH).cast::<[f32; WIDTH]>()) };
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc += x * b;
            }
        }
        // SAFETY: row `i < M` of the tile.
        unsafe { std::ptr::copy_nonoverlapping(acc.as_ptr(), out.add(i * WIDTH), WIDTH) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_gives_every_row_count_the_same_sums() {
        let (k, stride) = (37, 40);
        let a: Vec<f32> = (0..MAX_ROWS * stride).map(|i| ((i * 31 % 97) as f32 - 48.0) / 16.0).collect();
        let panel: Vec<Line> = (0..k * 2)
            .map(|i| Line(std::array::from_fn(|j| ((i * 17 + j * 5) % 89) as f32 / 8.0 - 5.0)))
            .collect();
        for isa in Isa::available() {
            for rows in 1..=MAX_ROWS {
                let mut tile = Tile::new();
                multiply(isa, &a, stride, rows, k, &panel, &mut tile);
                for i in 0..rows {
                    for j in 0..WIDTH {
                        let terms = (0..k).map(|kk| a[i * stride + kk] * floats(&panel)[kk * WIDTH + j]);
                        assert_eq!(tile.row(i)[j], terms.sum::<f32>(), "{isa:?}, {rows} rows, [{i}, {j}]");
                    }
                }
            }
        }
    }
}
