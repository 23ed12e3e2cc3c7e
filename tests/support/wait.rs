//! Waiting for what comes in its own time.

use std::time::{Duration, Instant};

/// Waits until `what` is so; panics with it when it is not within a minute.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
