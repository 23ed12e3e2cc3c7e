//! Who computes in parallel: the ops of this crate do, on rayon's threads; candle's own need not.

/// Makes candle run its own ops on the thread that calls them, unless `CANDLE_NUM_THREADS` is set. Its helpers spin for a
/// tenth of a millisecond after every op, on the cores that the ops of this crate want next: on two cores, training is
/// twice as fast without them. For the first line of a binary's `main`: it does nothing once there is a second thread, or
/// where that cannot be known.
#[allow(unsafe_code)]
pub fn keep_candle_single() {
    const NAME: &str = "CANDLE_NUM_THREADS";
    let is_alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if is_alone && std::env::var_os(NAME).is_none() {
        // SAFETY: this is the process's only thread, so that no other reads or writes the environment meanwhile.
        unsafe { std::env::set_var(NAME, "1") };
    }
}
