//! Accepted work until it is answered: bounded, cancelled at any time, handed to the workers batch by batch.
//!
//! A trajectory that is computed already, for whomever, is not computed again beside it: it joins the one that runs.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qrm_model::Trajectory;
use tokio::sync::Notify;
use tracing::Span;

use super::Limits;
use super::cost::Cost;
use super::job::{Job, JobError};
use super::schedule::{Part, Schedule};
use crate::metrics::Metrics;

/// Why work was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Too much waits; try again later.
    #[error("the queue is full")]
    Full,
    /// The server is draining.
    #[error("the server is shutting down")]
    Closed,
    /// It would not fit an empty queue.
    #[error("the request holds {tokens} tokens, the queue {limit}")]
    TooLarge {
        /// Of the request.
        tokens: usize,
        /// Of the queue.
        limit: usize,
    },
}

/// A batch of less than this share of the budget waits a moment for requests that are on their way.
const LITTLE: f64 = 0.25;
/// How long.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

#[derive(Default)]
struct State {
    schedule: Schedule,
    /// Trajectories in batches that are being computed, and who waits for each.
    running: HashMap<Trajectory, Vec<Part>>,
    next_id: u64,
    /// Requests and tokens that the gauges show.
    published: (i64, i64),
    closed: bool,
    /// The last worker left before that.
    failed: bool,
    /// Queue tokens that a worker answers per second, a running mean over batches.
    rate: Option<f64>,
}

/// Between the fronts and the workers.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Less waits than before, or no more is taken.
    left: Notify,
    /// Requests that are read and tokenised, and will be here in a moment.
    preparing: AtomicUsize,
    limits: Limits,
    cost: Cost,
    /// Of a batch.
    budget: f64,
    /// That take batches side by side; those that have ended do not.
    workers: AtomicUsize,
    metrics: Metrics,
}

/// A request on its way to the queue.
pub(crate) struct Preparing(Arc<Queue>);

impl Drop for Preparing {
    fn drop(&mut self) {
        if self.0.preparing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_all();
        }
    }
}

impl Queue {
    pub(crate) fn new(limits: Limits, cost: Cost, budget: f64, workers: usize, metrics: Metrics) -> Self {
        let (state, changed, left) = (Mutex::default(), Condvar::new(), Notify::new());
        let (preparing, workers) = (AtomicUsize::new(0), AtomicUsize::new(workers));
        Self { state, changed, left, preparing, limits, cost, budget, workers, metrics }
    }

    /// Says that a request will come unless the guard is dropped first.
    pub(crate) fn expect(self: &Arc<Self>) -> Preparing {
        self.preparing.fetch_add(1, Ordering::AcqRel);
        Preparing(self.clone())
    }

    /// Accepts a job whole, or refuses it whole.
    pub(crate) fn push(&self, job: Job) -> Result<u64, Refused> {
        let mut state = self.state();
        self.check(&state, job.tokens())?;
        state.next_id += 1;
        if state.running.is_empty() && state.schedule.len() == 0 {
            state.schedule.settle();
        }
        let (id, job) = (state.next_id, Arc::new(job));
        let joined: Vec<bool> = (0..job.trajectories.len())
            .map(|index| self.join(&mut state, &Part { job: job.clone(), index }))
            .collect();
        state.schedule.push(id, job, &joined);
        self.publish(&mut state);
        self.changed.notify_all();
        Ok(id)
    }

    /// Whether a job of that many tokens would be accepted now.
    pub(crate) fn accepts(&self, tokens: usize) -> Result<(), Refused> {
        self.check(&self.state(), tokens)
    }

    /// Waits until it would not be told to come back.
    pub(crate) async fn room(&self, tokens: usize) {
        loop {
            let left = self.left.notified();
            if self.accepts(tokens) != Err(Refused::Full) {
                return;
            }
            left.await;
        }
    }

    fn check(&self, state: &State, tokens: usize) -> Result<(), Refused> {
        let limit = self.limits.max_queue_tokens;
        if state.closed {
            return Err(Refused::Closed);
        }
        if tokens > limit {
            return Err(Refused::TooLarge { tokens, limit });
        }
        let is_full = state.schedule.tokens() + tokens > limit
            || state.schedule.len() >= self.limits.max_queue_requests;
        if is_full { Err(Refused::Full) } else { Ok(()) }
    }

    /// Whether the same trajectory is being computed; then `part` waits for that.
    fn join(&self, state: &mut State, part: &Part) -> bool {
        let Some(holders) = state.running.get_mut(part.trajectory()) else { return false };
        holders.push(part.clone());
        self.metrics.joined_tokens.inc_by(part.trajectory().len() as u64);
        self.start(part);
        true
    }

    fn start(&self, part: &Part) {
        if let Some(waited) = part.job.start() {
            self.metrics.queue_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Takes a job's waiting part back. Unknown ids (the job is all in batches, or answered) are no error.
    pub(crate) fn cancel(&self, id: u64) {
        let mut state = self.state();
        state.schedule.remove(id);
        self.publish(&mut state);
    }

    /// Waits for work and takes the next batch, no two trajectories of it the same; `None` once the queue is closed and
    /// empty. Each is given back with [`Queue::finish`].
    pub(crate) fn next_batch(&self) -> Option<Vec<Trajectory>> {
        let mut state = self.state();
        let mut waited = Duration::ZERO;
        loop {
            let is_expected = self.preparing.load(Ordering::Acquire) > 0 && !state.closed;
            let is_little = (state.schedule.tokens() as f64) < LITTLE * self.budget;
            if is_little && is_expected && state.schedule.len() > 0 && waited < LONGEST_WAIT {
                let start = Instant::now();
                let left = LONGEST_WAIT - waited;
                let woken = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                state = woken.0;
                waited += start.elapsed();
                continue;
            }
            let batch = self.take(&mut state);
            self.publish(&mut state);
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.schedule.len() > 0 {
                continue; // all that was taken runs already, elsewhere
            }
            if state.closed {
                return None;
            }
            // A deadline that passes while its job waits is the job's own timer's affair; nothing here must wake for it.
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next batch of what waits now, perhaps none.
    #[cfg(test)]
    pub(super) fn try_next_batch(&self) -> Vec<Trajectory> {
        let mut state = self.state();
        let batch = self.take(&mut state);
        self.publish(&mut state);
        batch
    }

    fn take(&self, state: &mut State) -> Vec<Trajectory> {
        state.drop_over();
        let taken = state.schedule.take(&self.cost, self.budget);
        if !taken.parts.is_empty() {
            self.metrics.batch_fill.observe(taken.cost / self.budget);
        }
        let mut batch = Vec::new();
        for part in taken.parts {
            if self.join(state, &part) {
                continue;
            }
            self.start(&part);
            let trajectory = part.trajectory().clone();
            state.running.insert(trajectory.clone(), vec![part]);
            batch.push(trajectory);
        }
        batch
    }

    /// The spans of the requests that wait for a batch, each once.
    pub(crate) fn spans(&self, batch: &[Trajectory]) -> Vec<Span> {
        let state = self.state();
        let holders = batch.iter().filter_map(|trajectory| state.running.get(trajectory)).flatten();
        let mut seen = HashSet::new();
        let each = holders.filter(|part| seen.insert(Arc::as_ptr(&part.job)));
        each.map(|part| part.job.span.clone()).filter(|span| !span.is_disabled()).collect()
    }

    /// A trajectory of a batch is done: who waits for it.
    pub(crate) fn finish(&self, trajectory: &Trajectory) -> Vec<Part> {
        self.state().running.remove(trajectory).unwrap_or_default()
    }

    /// Whether nothing waits and nothing runs.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.schedule.len() == 0 && state.schedule.tokens() == 0 && state.running.is_empty()
    }

    /// No more work; what waits is still served.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
        self.left.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Whether the last worker left before that.
    pub(crate) fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// A worker has ended. With the last one everything ends that waits.
    pub(crate) fn leave(&self) {
        if self.workers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let mut state = self.state();
        state.failed = !state.closed;
        state.closed = true;
        for (_, job) in std::mem::take(&mut state.schedule).jobs() {
            job.fail(JobError::Stopped);
        }
        self.publish(&mut state);
        self.changed.notify_all();
        self.left.notify_waiters();
    }

    /// Tells the queue how fast a worker is.
    pub(crate) fn drained(&self, tokens: usize, time: Duration) {
        let rate = tokens as f64 / time.as_secs_f64().max(1e-6);
        let mut state = self.state();
        state.rate = Some(state.rate.map_or(rate, |old| 0.8 * old + 0.2 * rate));
    }

    /// How long what waits now will take, at least a second, at most five minutes.
    pub(crate) fn retry_after(&self) -> Duration {
        let state = self.state();
        let rate = state.rate.map(|rate| rate * self.workers.load(Ordering::Acquire) as f64);
        let seconds = rate.map_or(1.0, |rate| state.schedule.tokens() as f64 / rate.max(1.0));
        Duration::from_secs_f64(seconds.ceil().clamp(1.0, 300.0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other queues have their share of the same gauges.
    fn publish(&self, state: &mut State) {
        let (requests, tokens) = (state.schedule.len() as i64, state.schedule.tokens() as i64);
        self.metrics.queue_requests.add(requests - state.published.0);
        self.metrics.queue_tokens.add(tokens - state.published.1);
        if requests < state.published.0 || tokens < state.published.1 {
            self.left.notify_waiters();
        }
        state.published = (requests, tokens);
    }
}

impl State {
    /// Drops jobs that nobody waits for, and ends those whose deadline has passed.
    fn drop_over(&mut self) {
        let now = Instant::now();
        let over = self.schedule.jobs().filter(|(_, job)| {
            if job.deadline.is_some_and(|d| d <= now) {
                job.fail(JobError::Deadline);
            }
            job.is_over()
        });
        for id in over.map(|(id, _)| id).collect::<Vec<_>>() {
            self.schedule.remove(id);
        }
    }
}
