//! The inner tile in integers: up to [`MAX_ROWS`](crate::cpu::tile::MAX_ROWS) rows times one panel. Any order of exact sums
//! gives the same.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use crate::cpu::tile::WIDTH;

/// # Safety
/// `a` holds `M` rows of `2 · pairs` codes `stride` apart, `panel` `pairs · WIDTH · 2` codes, `out` `M · WIDTH` sums.
pub(super) unsafe fn portable<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    panel: *const i16,
    out: *mut i32,
) {
    for i in 0..M {
        let mut acc = [0i32; WIDTH];
        for p in 0..pairs {
            // SAFETY: `i < M` and `p < pairs`, within the bounds the caller promises.
            let (x, b) = unsafe {
                let x = [*a.add(i * stride + p * 2), *a.add(i * stride + p * 2 + 1)];
                (x.map(i32::from), &*panel.add(p * WIDTH * 2).cast::<[[i16; 2]; WIDTH]>())
            };
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc += x[0] * i32::from(b[0]) + x[1] * i32::from(b[1]);
            }
        }
        // SAFETY: row `i < M` of the tile.
        unsafe { std::ptr::copy_nonoverlapping(acc.as_ptr(), out.add(i * WIDTH), WIDTH) };
    }
}
