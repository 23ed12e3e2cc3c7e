//! The allocator of the binaries, set up for what numeric work asks of it.

use std::ffi::c_long;

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc's `mi_option_t`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long freed memory stays with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// This many milliseconds: batch follows batch, and an idle process gives its memory back.
    Milliseconds(u16),
    /// To the end.
    Always,
}

/// Keeps freed pages of a binary whose global allocator is [`Allocator`]. Activations come and go by the gigabyte; by
/// default their pages go back to the system after 10 ms and are cleared when they are asked for again, which costs a
/// 135M model 8 % of its serving and a third of its training speed.
#[allow(unsafe_code)]
pub fn keep_pages(keep: Keep) {
    let delay: c_long = match keep {
        Keep::Milliseconds(delay) => delay.into(),
        Keep::Always => -1,
    };
    // SAFETY: sets a number in a table, under an index that the library has; an atomic store.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, delay) };
}

#[cfg(test)]
mod tests {
    /// The index is the library's own order of options: its default tells that it is the right one.
    #[test]
    #[allow(unsafe_code)]
    fn the_option_is_the_purge_delay() {
        // SAFETY: reads a number from the same table.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) }, 10);
        super::keep_pages(super::Keep::Milliseconds(1000));
        // SAFETY: as above.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) }, 1000);
    }
}
