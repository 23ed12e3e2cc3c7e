//! The engine: a bounded queue of jobs, and the worker thread that turns them into batches and owns the device.
//!
//! - [`job`]: one request's trajectories, from acceptance to answer.
//! - [`queue`]: what waits, and which of it makes the next batch.
//! - `worker`: runs batches, one after the other.

pub(crate) mod job;
pub(crate) mod queue;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qrm_model::{PrefixCache, RewardModel, Trajectory};
use tokio::sync::oneshot;

use crate::metrics::Metrics;
use job::{Job, JobResult};
use queue::{Queue, Refused};

/// Sizes of the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Unique tokens of one batch.
    pub(crate) max_batch_tokens: usize,
    /// Tokens that may wait.
    pub(crate) max_queue_tokens: usize,
    /// Requests that may wait.
    pub(crate) max_queue_requests: usize,
    /// Keys and values that are kept between batches.
    pub(crate) prefix_cache_bytes: usize,
}

/// Accepts work and answers it. Dropping it closes the queue; [`Engine::join`] waits for the worker.
pub(crate) struct Engine {
    queue: Arc<Queue>,
    worker: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the worker with `threads` compute threads (0 = one per core).
    pub(crate) fn start(
        model: Arc<RewardModel>,
        threads: usize,
        limits: Limits,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute-{i}"))
            .build()?;
        let queue = Arc::new(Queue::new(limits, metrics.clone()));
        let cache = PrefixCache::new(&model, limits.prefix_cache_bytes);
        let worker = worker::Worker { queue: queue.clone(), model, cache, pool, metrics };
        let worker = std::thread::Builder::new().name("worker".into()).spawn(move || worker.run())?;
        Ok(Self { queue, worker: Some(worker) })
    }

    /// Queues validated trajectories. The ticket gives the answer; dropping it takes the work back.
    pub(crate) fn submit(
        &self,
        trajectories: Vec<Trajectory>,
        priority: i32,
        deadline: Option<Instant>,
    ) -> Result<Ticket, Refused> {
        let (reply, answer) = oneshot::channel();
        let id = self.queue.push(Job::new(trajectories, priority, deadline, reply))?;
        Ok(Ticket { queue: self.queue.clone(), id, answer })
    }

    /// Refuses new work from now on; what was accepted is still answered.
    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// Whether new work is refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Whether the worker lives: without it nothing is answered.
    pub(crate) fn is_alive(&self) -> bool {
        self.worker.as_ref().is_some_and(|w| !w.is_finished())
    }

    /// Seconds after which a refused client may hope for a place, from the queue's own drain rate.
    pub(crate) fn retry_after(&self) -> Duration {
        self.queue.retry_after()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join(); // a worker that panicked has nothing left to say
        }
    }
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
