//! The engine: a bounded queue of jobs, and the worker threads that turn them into batches and own the device.
//!
//! - [`job`]: one request's trajectories, from acceptance to answer.
//! - [`queue`]: accepted work until it is answered. `schedule`: which of it makes the next batch.
//! - `cost`: what a batch costs. `budget`: how much a batch should, measured at the start.
//! - `worker`: runs batches, one after the other.

mod budget;
mod cost;
#[cfg(test)]
mod interleavings;
pub(crate) mod job;
pub(crate) mod queue;
mod schedule;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qrm_model::reward::TokenScores;
use qrm_model::{PrefixCache, PrefixCacheStats, RewardModel, Trajectory};
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;
use crate::model::{Copies, Placed};
use cost::Cost;
use job::{Job, JobResult};
use queue::{Preparing, Queue, Refused};
use worker::{Score, Worker};

/// Sizes of the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// What a batch may cost, in tokens through the linear layers; none: found by measuring.
    pub(crate) max_batch_tokens: Option<usize>,
    /// Tokens that may wait.
    pub(crate) max_queue_tokens: usize,
    /// Requests that may wait.
    pub(crate) max_queue_requests: usize,
    /// Keys and values that are kept between batches; none: see [`cache_bytes`].
    pub(crate) prefix_cache_bytes: Option<usize>,
    /// Batches that are computed side by side.
    pub(crate) workers: usize,
    /// Compute threads of all workers together; none: one for each CPU.
    pub(crate) threads: Option<usize>,
}

/// Accepts work and answers it. Dropping it closes the queue and waits for the workers.
pub(crate) struct Engine {
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    threads: usize,
    budget: f64,
    /// One for each copy of the model.
    caches: Vec<Arc<Cache>>,
    metrics: Metrics,
}

/// A prefix cache, and what the metrics show of it.
struct Cache {
    cache: PrefixCache,
    counted: Mutex<PrefixCacheStats>,
}

/// Who a job is for, and how urgent it is.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Clients share the engine fairly.
    pub(crate) client: Arc<str>,
    /// Higher first.
    pub(crate) priority: i32,
    /// When its answer is no longer wanted.
    pub(crate) deadline: Option<Instant>,
}

impl Engine {
    /// Starts the workers: `limits.workers` for each copy of the model. Whichever is free takes the next batch.
    pub(crate) fn start(copies: &Copies, limits: Limits, metrics: Metrics) -> anyhow::Result<Self> {
        let placed: Vec<&Placed> =
            copies.iter().flat_map(|copy| std::iter::repeat_n(copy, limits.workers.max(1))).collect();
        let pool = |(worker, Placed { cores, .. }): (usize, &&Placed)| {
            let threads = match limits.threads {
                Some(threads) => threads / placed.len(),
                None => cores.count() / placed.iter().filter(|other| other.cores == *cores).count(),
            };
            cores.pool(threads, move |i| format!("compute-{worker}-{i}"))
        };
        let pools = placed.iter().enumerate().map(pool).collect::<Result<Vec<_>, _>>()?;
        let threads = pools.iter().map(rayon::ThreadPool::current_num_threads).sum();
        let first = &copies.first.model;
        let cost = Cost::of_model(first);
        let budget = match limits.max_batch_tokens {
            Some(tokens) => tokens as f64,
            None => budget::measure(first, &cost, &pools[0]),
        };
        // A GPU chooses its kernels with its first batch, which is to be nobody's; the first copy's is the warm-up.
        for copy in copies.iter().skip(1) {
            copy.model.score(&[smallest()])?;
        }
        let queue = Arc::new(Queue::new(limits, cost, budget, placed.len(), metrics.clone()));
        // Dropped where one cannot be started, which ends those that were.
        let mut engine = Self { queue, workers: Vec::new(), threads, budget, caches: Vec::new(), metrics };
        let mut of_models: Vec<(&Arc<RewardModel>, Arc<Cache>)> = Vec::new();
        for (i, (Placed { model, .. }, pool)) in placed.into_iter().zip(pools).enumerate() {
            // Workers of the same copy share its cache.
            let cache = match of_models.iter().find(|(of, _)| Arc::ptr_eq(of, model)) {
                Some((_, cache)) => cache.clone(),
                None => {
                    let cache = PrefixCache::new(model, cache_bytes(model, limits.prefix_cache_bytes)?)?;
                    let cache = Arc::new(Cache { counted: Mutex::new(cache.stats()), cache });
                    of_models.push((model, cache.clone()));
                    engine.caches.push(cache.clone());
                    cache
                }
            };
            let score = score(model.clone(), cache, engine.metrics.clone());
            let worker = Worker::new(engine.queue.clone(), score, engine.metrics.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{i}"));
            // It is one of the threads that compute: handed to them, a batch would wake one more before it begins.
            engine.workers.push(thread.spawn(move || pool.install(|| worker.run()))?);
        }
        Ok(engine)
    }

    /// Says that a request is being read; a batch that is nearly empty waits a moment for it.
    pub(crate) fn expect(&self) -> Preparing {
        self.queue.expect()
    }

    /// Queues validated trajectories. The ticket gives the answer; dropping it takes the work back.
    pub(crate) fn submit(&self, trajectories: Vec<Trajectory>, terms: Terms) -> Result<Ticket, Refused> {
        let (reply, answer) = oneshot::channel();
        let id = self.queue.push(Job::new(trajectories, terms, reply))?;
        Ok(Ticket { queue: self.queue.clone(), id, answer })
    }

    /// The same, but scores come as they are ready; once they end, the ticket tells how.
    pub(crate) fn stream(
        &self,
        trajectories: Vec<Trajectory>,
        terms: Terms,
    ) -> Result<(Ticket, mpsc::UnboundedReceiver<(usize, TokenScores)>), Refused> {
        let (reply, answer) = oneshot::channel();
        let (parts, scores) = mpsc::unbounded_channel();
        let id = self.queue.push(Job::new(trajectories, terms, reply).in_parts(parts))?;
        Ok((Ticket { queue: self.queue.clone(), id, answer }, scores))
    }

    /// Whether the queue is too full for that many tokens.
    pub(crate) fn is_full(&self, tokens: usize) -> bool {
        self.queue.accepts(tokens) == Err(Refused::Full)
    }

    /// Waits until it is not.
    pub(crate) async fn room(&self, tokens: usize) {
        self.queue.room(tokens).await;
    }

    /// Refuses new work from now on; what was accepted is still answered.
    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// Whether new work is refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Whether a worker lives: without one nothing is answered. Of a closed engine: whether accepted work is left.
    pub(crate) fn is_alive(&self) -> bool {
        self.workers.iter().any(|w| !w.is_finished())
    }

    /// Compute threads of all workers together.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Whether its workers have ended without being told to: their devices do not compute any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.queue.has_failed()
    }

    /// What a batch may cost, in tokens through the linear layers.
    pub(crate) fn budget(&self) -> f64 {
        self.budget
    }

    /// Seconds after which a refused client may hope for a place, from the queue's own drain rate.
    pub(crate) fn retry_after(&self) -> Duration {
        self.queue.retry_after()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker that panicked has nothing left to say
        }
        for cache in &self.caches {
            let counted = cache.counted.lock().unwrap_or_else(PoisonError::into_inner);
            self.metrics.prefix_cache_bytes.sub(counted.bytes as i64);
        }
    }
}

/// What any model can score.
pub(crate) fn smallest() -> Trajectory {
    Trajectory { prompt_ids: [0].into(), response_ids: [0].into() }
}

/// What a prefix cache may hold where nobody said it: 512 MiB, or a third of what the model's GPUs have free.
pub(crate) fn cache_bytes(model: &RewardModel, said: Option<usize>) -> anyhow::Result<usize> {
    Ok(match said {
        Some(bytes) => bytes,
        None => model.free_gpu_bytes()?.map_or(512 << 20, |free| free / 3),
    })
}

/// Scores batches on the threads of the pool that it is called from, with prompts seen before from `cache`.
fn score(model: Arc<RewardModel>, cache: Arc<Cache>, metrics: Metrics) -> Box<Score> {
    Box::new(move |batch| {
        let scores = model.score_cached(batch, &cache.cache);
        // Workers share the cache: what one has counted the others must not.
        let mut before = cache.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let after = cache.cache.stats();
        metrics.prefix_cache_hits.inc_by(after.hit_tokens - before.hit_tokens);
        metrics.prefix_cache_evicted.inc_by(after.evicted_tokens - before.evicted_tokens);
        metrics.prefix_cache_bytes.add(after.bytes as i64 - before.bytes as i64);
        *before = after;
        scores
    })
}

/// A claim on an answer.
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    id: u64,
    answer: oneshot::Receiver<JobResult>,
}

impl Ticket {
    /// Waits for the answer.
    pub(crate) async fn answer(mut self) -> JobResult {
        (&mut self.answer).await.unwrap_or(Err(job::JobError::Failed("the worker stopped".into())))
    }

    /// Waits for the answer without an async runtime.
    pub(crate) fn blocking_answer(mut self) -> JobResult {
        let (_, never) = oneshot::channel();
        let answer = std::mem::replace(&mut self.answer, never);
        answer.blocking_recv().unwrap_or(Err(job::JobError::Failed("the worker stopped".into())))
    }
}

impl Drop for Ticket {
    /// The client is gone or has its answer: what still waits is dropped.
    fn drop(&mut self) {
        self.queue.cancel(self.id);
    }
}
