//! The tile of integers with NEON.

use std::arch::aarch64::*;

use crate::cpu::tile::{WIDTH, in_pieces};

/// # Safety
/// `a` holds `M` rows of `2 · pairs` codes `stride` apart, `panel` `pairs · WIDTH · 2` codes, `out` `M · WIDTH` sums.
#[target_feature(enable = "neon")]
pub(in super::super) unsafe fn neon<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    panel: *const i16,
    out: *mut i32,
) {
    /// # Safety
    /// As the outer function, for `M` rows and 16 columns.
    #[target_feature(enable = "neon")]
    unsafe fn piece<const M: usize>(
        a: *const i16,
        stride: usize,
        pairs: usize,
        panel: *const i16,
        out: *mut i32,
    ) {
        let mut acc = [[vdupq_n_s32(0); 4]; M];
        for p in 0..pairs {
            // SAFETY: `p < pairs`, within the bounds the caller promises. A load of two takes a pair's rows apart.
            unsafe {
                let b = [0, 16].map(|j| vld2q_s16(panel.add(p * WIDTH * 2 + j)));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = a.add(i * stride + p * 2);
                    let (x0, x1) = (*x, *x.add(1));
                    for (acc, b) in acc.as_chunks_mut::<2>().0.iter_mut().zip(b) {
                        acc[0] = vmlal_n_s16(acc[0], vget_low_s16(b.0), x0);
                        acc[1] = vmlal_high_n_s16(acc[1], b.0, x0);
                        acc[0] = vmlal_n_s16(acc[0], vget_low_s16(b.1), x1);
                        acc[1] = vmlal_high_n_s16(acc[1], b.1, x1);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                // SAFETY: row `i < M` of the tile.
                unsafe { vst1q_s32(out.add(i * WIDTH + 4 * j), *acc) };
            }
        }
    }
    in_pieces!(piece::<M>(a, stride, pairs, panel, out), 2);
}
