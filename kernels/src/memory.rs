//! The allocator of the binaries, set up for what numeric work asks of it.

use std::ffi::c_long;
use std::time::Duration;

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc's `mi_option_t`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long a server keeps them: longer than a batch and the pause before the next.
pub const PAUSE: Duration = Duration::from_secs(10);

/// Keeps memory that a binary whose global allocator is [`Allocator`] has freed for `time`, forever if none, before the
/// system has it back. The allocator's own second is shorter than a large batch, and pages come back cleared: on a CPU that
/// costs scoring 2 % (SmolLM2-135M), and LoRA on that model, whose activations are gigabytes, a third.
#[allow(unsafe_code)]
pub fn keep_pages(time: Option<Duration>) {
    let milliseconds = time.map_or(-1, |time| c_long::try_from(time.as_millis()).unwrap_or(c_long::MAX));
    // SAFETY: sets a number in a table, under an index that the library has; an atomic store.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
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
        super::keep_pages(Some(super::Duration::from_secs(10)));
        assert_eq!(delay(), 10_000);
        super::keep_pages(None);
        assert_eq!(delay(), -1);
    }
}
