//! The tile of integers with AVX-512's dot product, and with AVX2.

use std::arch::x86_64::*;

use crate::cpu::tile::{WIDTH, in_pieces};

/// # Safety
/// `a` holds `M` rows of `2 · pairs` codes `stride` apart, `panel` `pairs · WIDTH · 2` codes aligned to 64, `out`
/// `M · WIDTH` sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in super::super) unsafe fn vnni<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    panel: *const i16,
    out: *mut i32,
) {
    /// `acc += x · b` of pairs. Written out since LLVM makes a multiply and an addition of the intrinsic, to shorten its
    /// latency, which nothing waits for here: half the rate.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot(acc: &mut __m512i, x: __m512i, b: __m512i) {
        // SAFETY: reads and writes these registers alone, and the feature is enabled.
        unsafe {
            std::arch::asm!(
                "vpdpwssd {acc}, {x}, {b}",
                acc = inout(zmm_reg) *acc,
                x = in(zmm_reg) x,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
    let mut acc = [[_mm512_setzero_si512(); 2]; M];
    for p in 0..pairs {
        // SAFETY: `p < pairs`, within the bounds the caller promises.
        unsafe {
            let b0 = _mm512_load_si512(panel.add(p * WIDTH * 2).cast());
            let b1 = _mm512_load_si512(panel.add(p * WIDTH * 2 + 32).cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(i * stride + p * 2).cast::<i32>().read_unaligned());
                dot(&mut acc[0], x, b0);
                dot(&mut acc[1], x, b1);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i < M` of the tile.
        unsafe {
            _mm512_storeu_si512(out.add(i * WIDTH).cast(), acc[0]);
            _mm512_storeu_si512(out.add(i * WIDTH + 16).cast(), acc[1]);
        }
    }
}

/// # Safety
/// As [`vnni`].
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn avx2<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    panel: *const i16,
    out: *mut i32,
) {
    /// # Safety
    /// As the outer function, for `M` rows and 16 columns.
    #[target_feature(enable = "avx2")]
    unsafe fn piece<const M: usize>(
        a: *const i16,
        stride: usize,
        pairs: usize,
        panel: *const i16,
        out: *mut i32,
    ) {
        let mut acc = [[_mm256_setzero_si256(); 2]; M];
        for p in 0..pairs {
            // SAFETY: `p < pairs`, within the bounds the caller promises.
            unsafe {
                let b0 = _mm256_load_si256(panel.add(p * WIDTH * 2).cast());
                let b1 = _mm256_load_si256(panel.add(p * WIDTH * 2 + 16).cast());
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(a.add(i * stride + p * 2).cast::<i32>().read_unaligned());
                    acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(x, b0));
                    acc[1] = _mm256_add_epi32(acc[1], _mm256_madd_epi16(x, b1));
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            // SAFETY: row `i < M` of the tile.
            unsafe {
                _mm256_storeu_si256(out.add(i * WIDTH).cast(), acc[0]);
                _mm256_storeu_si256(out.add(i * WIDTH + 8).cast(), acc[1]);
            }
        }
    }
    in_pieces!(piece::<M>(a, stride, pairs, panel, out), 2);
}
