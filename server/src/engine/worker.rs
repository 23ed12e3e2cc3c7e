//! Runs batches, one after the other. What makes a batch fail is found by halving it; the others are answered. A panic
//! that is nobody's batch costs the worker its turn, not its life. A device that computes nothing any more does: others may
//! have theirs.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use qrm_model::{BatchScores, ModelError, Trajectory};
use tracing::Span;

use super::job::JobError;
use super::queue::Queue;
use super::schedule::Part;
use super::smallest;
use crate::metrics::Metrics;
use crate::telemetry::{SPAN, otlp};

/// Scores a batch on the compute threads, of which the caller is one.
pub(super) type Score = dyn Fn(&[Trajectory]) -> Result<BatchScores, ModelError> + Send;

pub(super) struct Worker {
    queue: Arc<Queue>,
    score: Box<Score>,
    metrics: Metrics,
    /// What it has taken from the queue and not given back.
    taken: Mutex<Vec<Trajectory>>,
    /// Why the device computes nothing any more.
    broken: OnceLock<String>,
}

impl Worker {
    pub(super) fn new(queue: Arc<Queue>, score: Box<Score>, metrics: Metrics) -> Self {
        Self { queue, score, metrics, taken: Mutex::default(), broken: OnceLock::new() }
    }

    /// Until the queue is closed and empty, or the device is broken.
    pub(super) fn run(self) {
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            tracing::error!("the worker panicked and starts again");
            self.metrics.worker_restarts.inc();
            let taken = std::mem::take(&mut *self.taken());
            self.fail(&taken, "a panic in the worker");
        }
        self.queue.leave();
    }

    fn work(&self) {
        while self.broken.get().is_none() {
            let Some(batch) = self.queue.next_batch() else { return };
            self.taken().clone_from(&batch);
            self.batch(&batch);
            self.taken().clear();
        }
    }

    fn batch(&self, batch: &[Trajectory]) {
        if let Some(why) = self.broken.get() {
            return self.fail(batch, why);
        }
        let _span = self.span(batch).entered();
        let start = Instant::now();
        let failed = match self.try_score(batch) {
            Ok(scores) => return self.deliver(batch, scores, start.elapsed()),
            Err(failed) => failed,
        };
        if let [one] = batch {
            self.metrics.failed_trajectories.inc();
            tracing::error!(tokens = one.len(), "a trajectory failed: {failed}");
            if let Err(why) = self.try_score(&[smallest()]) {
                tracing::error!("the device computes nothing any more, and gets no more work: {why}");
                let _ = self.broken.set(why);
            }
            return self.fail(batch, &failed);
        }
        tracing::warn!(trajectories = batch.len(), "a batch failed and is halved: {failed}");
        self.metrics.failed_batches.inc();
        let (first, second) = batch.split_at(batch.len() / 2);
        self.batch(first);
        self.batch(second);
    }

    fn try_score(&self, batch: &[Trajectory]) -> Result<BatchScores, String> {
        match catch_unwind(AssertUnwindSafe(|| (self.score)(batch))) {
            Ok(scores) => scores.map_err(|error| error.to_string()),
            Err(_) => Err("a panic in the engine".into()),
        }
    }

    /// A batch is part of the trace of its first request that is kept, and linked to those of the others.
    fn span(&self, batch: &[Trajectory]) -> Span {
        let mut requests = match tracing::enabled!(target: SPAN, tracing::Level::INFO) {
            true => self.queue.spans(batch),
            false => Vec::new(),
        };
        if let Some(kept) = requests.iter().position(otlp::is_sampled) {
            requests.swap(0, kept);
        }
        let Some((first, others)) = requests.split_first() else { return Span::none() };
        let tokens: usize = batch.iter().map(Trajectory::len).sum();
        let (trajectories, requests) = (batch.len(), requests.len());
        let span = tracing::info_span!(target: SPAN, parent: first, "batch", trajectories, tokens, requests);
        others.iter().for_each(|other| {
            span.follows_from(other);
        });
        span
    }

    fn deliver(&self, batch: &[Trajectory], scores: BatchScores, time: Duration) {
        let tokens: usize = batch.iter().map(Trajectory::len).sum();
        self.queue.drained(tokens, time);
        let computed: usize = scores.computed_tokens.iter().sum();
        self.metrics.compute_seconds.observe(time.as_secs_f64());
        self.metrics.batch_tokens.observe(computed as f64);
        self.metrics.computed_tokens.inc_by(computed as u64);
        self.metrics.shared_tokens.inc_by((tokens - computed) as u64);
        let BatchScores { scores, computed_tokens } = scores;
        let mut jobs = HashMap::new();
        for ((trajectory, scores), computed) in batch.iter().zip(scores).zip(computed_tokens) {
            let holders = self.queue.finish(trajectory);
            for (i, Part { job, index }) in holders.into_iter().enumerate() {
                // The others have it for nothing.
                job.complete(index, scores.clone(), if i == 0 { computed } else { 0 });
                jobs.insert(Arc::as_ptr(&job), job);
            }
        }
        for job in jobs.into_values() {
            job.finish_batch(time);
        }
    }

    fn fail(&self, batch: &[Trajectory], message: &str) {
        for part in batch.iter().flat_map(|trajectory| self.queue.finish(trajectory)) {
            part.job.fail(JobError::Failed(message.to_owned()));
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Vec<Trajectory>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
