//! The allocator of the binaries, set up for what numeric work asks of it.

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc's `mi_option_t`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps all memory that a binary whose global allocator is [`Allocator`] has ever used. By default pages go back to
/// the system when they have been free for a second and come back cleared. That suits a server; in training, activations
/// of gigabytes live for seconds, and keeping their pages makes LoRA on a 135M model half as fast again.
#[allow(unsafe_code)]
pub fn keep_pages() {
    // SAFETY: sets a number in a table, under an index that the library has; an atomic store.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

#[cfg(test)]
mod tests {
    /// The index is the library's own order of options: the default there tells that it is the right one.
    #[test]
    #[allow(unsafe_code)]
    fn the_option_is_the_purge_delay() {
        // SAFETY: reads a number from the same table.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        super::keep_pages();
        assert_eq!(delay(), -1);
    }
}
