//! The tile with NEON.

use std::arch::aarch64::*;

use super::{WIDTH, in_pieces};

/// # Safety
/// `a` holds `M` rows of `k` floats `stride` apart, `panel` `k * WIDTH` floats, `out` `M * WIDTH`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn neon<const M: usize>(
    a: *const f32,
    stride: usize,
    k: usize,
    panel: *const f32,
    out: *mut f32,
) {
    /// # Safety
    /// As the outer function, for `M` rows and 16 columns.
    #[target_feature(enable = "neon")]
    unsafe fn piece<const M: usize>(
        a: *const f32,
        stride: usize,
        k: usize,
        panel: *const f32,
        out: *mut f32,
    ) {
        let mut acc = [[vdupq_n_f32(0.0); 4]; M];
        for kk in 0..k {
            // SAFETY: `kk < k`, within the bounds the caller promises.
            unsafe {
                let b: [_; 4] = std::array::from_fn(|j| vld1q_f32(panel.add(kk * WIDTH + 4 * j)));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = *a.add(i * stride + kk);
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = vfmaq_n_f32(*acc, b, x);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                // SAFETY: row `i < M` of the tile.
                unsafe { vst1q_f32(out.add(i * WIDTH + 4 * j), *acc) };
            }
        }
    }
    in_pieces!(piece::<M>(a, stride, k, panel, out), 1);
}
