//! The tile with AVX-512, and with AVX2.

use std::arch::x86_64::*;

use super::{WIDTH, in_pieces};

/// # Safety
/// `a` holds `M` rows of `k` floats `stride` apart, `panel` `k * WIDTH` floats aligned to 64, `out` `M * WIDTH`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn avx512<const M: usize>(
    a: *const f32,
    stride: usize,
    k: usize,
    panel: *const f32,
    out: *mut f32,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; M];
    for kk in 0..k {
        // SAFETY: `kk < k`, within the bounds the caller promises.
        unsafe {
            let b0 = _mm512_load_ps(panel.add(kk * WIDTH));
            let b1 = _mm512_load_ps(panel.add(kk * WIDTH + 16));
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i * stride + kk));
                acc[0] = _mm512_fmadd_ps(x, b0, acc[0]);
                acc[1] = _mm512_fmadd_ps(x, b1, acc[1]);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i < M` of the tile.
        unsafe {
            _mm512_storeu_ps(out.add(i * WIDTH), acc[0]);
            _mm512_storeu_ps(out.add(i * WIDTH + 16), acc[1]);
        }
    }
}

/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2<const M: usize>(
    a: *const f32,
    stride: usize,
    k: usize,
    panel: *const f32,
    out: *mut f32,
) {
    /// # Safety
    /// As the outer function, for `M` rows and 16 columns.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn piece<const M: usize>(
        a: *const f32,
        stride: usize,
        k: usize,
        panel: *const f32,
        out: *mut f32,
    ) {
        let mut acc = [[_mm256_setzero_ps(); 2]; M];
        for kk in 0..k {
            // SAFETY: `kk < k`, within the bounds the caller promises.
            unsafe {
                let b0 = _mm256_load_ps(panel.add(kk * WIDTH));
                let b1 = _mm256_load_ps(panel.add(kk * WIDTH + 8));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*a.add(i * stride + kk));
                    acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                    acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            // SAFETY: row `i < M` of the tile.
            unsafe {
                _mm256_storeu_ps(out.add(i * WIDTH), acc[0]);
                _mm256_storeu_ps(out.add(i * WIDTH + 8), acc[1]);
            }
        }
    }
    in_pieces!(piece::<M>(a, stride, k, panel, out), 1);
}
