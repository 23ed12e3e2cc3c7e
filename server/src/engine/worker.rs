//! Runs batches, one after the other. A batch that fails or panics fails its own jobs; the worker lives on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use qrm_model::{BatchScores, PrefixCache, RewardModel, Trajectory};

use super::job::{Job, JobError};
use super::queue::{Part, Queue};
use crate::metrics::Metrics;

pub(super) struct Worker {
    pub(super) queue: Arc<Queue>,
    pub(super) model: Arc<RewardModel>,
    pub(super) cache: PrefixCache,
    pub(super) pool: rayon::ThreadPool,
    pub(super) metrics: Metrics,
}

impl Worker {
    /// Until the queue is closed and empty.
    pub(super) fn run(self) {
        while let Some(parts) = self.queue.next_batch() {
            self.batch(&parts);
        }
        self.queue.stop();
    }

    fn batch(&self, parts: &[Part]) {
        let jobs = distinct(parts);
        for job in &jobs {
            if let Some(waited) = job.start() {
                self.metrics.queue_seconds.observe(waited.as_secs_f64());
            }
        }
        let batch: Vec<Trajectory> = parts.iter().map(|p| p.job.trajectories[p.index].clone()).collect();
        let before = self.cache.stats();
        let start = Instant::now();
        let compute = || self.pool.install(|| self.model.score_cached(&batch, &self.cache));
        let result = catch_unwind(AssertUnwindSafe(compute));
        let time = start.elapsed();
        let scores = match result {
            Ok(Ok(scores)) => scores,
            Ok(Err(error)) => return self.fail(&jobs, &error.to_string()),
            Err(_) => return self.fail(&jobs, "a panic in the engine"),
        };
        let tokens: usize = batch.iter().map(Trajectory::len).sum();
        self.queue.drained(tokens, time);
        let computed: usize = scores.computed_tokens.iter().sum();
        self.metrics.compute_seconds.observe(time.as_secs_f64());
        self.metrics.batch_tokens.observe(computed as f64);
        self.metrics.computed_tokens.inc_by(computed as u64);
        self.metrics.shared_tokens.inc_by((tokens - computed) as u64);
        let cache = self.cache.stats();
        self.metrics.prefix_cache_hits.inc_by(cache.hit_tokens - before.hit_tokens);
        self.metrics.prefix_cache_evicted.inc_by(cache.evicted_tokens - before.evicted_tokens);
        self.metrics.prefix_cache_bytes.set(cache.bytes as i64);
        let BatchScores { scores, computed_tokens } = scores;
        for ((part, scores), computed) in parts.iter().zip(scores).zip(computed_tokens) {
            part.job.complete(part.index, scores, computed);
        }
        for job in jobs {
            job.finish_batch(time);
        }
    }

    fn fail(&self, jobs: &[Arc<Job>], message: &str) {
        tracing::error!(requests = jobs.len(), "batch failed: {message}");
        self.metrics.failed_batches.inc();
        for job in jobs {
            job.fail(JobError::Failed(message.to_owned()));
        }
    }
}

/// The jobs of a batch, each once; parts of one job stand together.
fn distinct(parts: &[Part]) -> Vec<Arc<Job>> {
    let mut jobs: Vec<Arc<Job>> = parts.iter().map(|p| p.job.clone()).collect();
    jobs.dedup_by(|a, b| Arc::ptr_eq(a, b));
    jobs
}
