//! The machine's own yardsticks: its sgemm rate and this process's peak memory.

use std::time::Instant;

use candle_core::Result;

use crate::noise::matrix;

/// GFLOP/s of candle's own matrix multiply (the crate `gemm`) at a decoder-like shape, best of five.
pub(crate) fn sgemm_gflops() -> Result<f64> {
    let (n, k, out) = (1024, 576, 3072);
    let (x, w) = (matrix(n, k, 1.0)?, matrix(out, k, 1.0)?.t()?);
    let seconds = best(5, || x.matmul(&w).map(drop))?;
    Ok(2.0 * (n * k * out) as f64 / seconds / 1e9)
}

/// The shortest of `runs` runs after one that is not counted, in seconds.
pub(crate) fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Peak resident memory of this process so far, MiB; `None` where `/proc` does not tell.
pub(crate) fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// A pool of `threads` threads, all cores when 0.
pub(crate) fn pool(threads: usize) -> anyhow::Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?)
}

/// Seconds that this process's threads have computed; `None` where `/proc` does not tell.
pub(crate) fn cpu_seconds() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse().ok()
    };
    Some(tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9)
}
