//! What waits, and which of it makes the next batch: by priority, then by age, up to a budget of unique tokens.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qrm_model::Trajectory;

use super::Limits;
use super::job::{Job, JobError};
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

/// A trajectory's place: its job, and which of the job's it is.
pub(crate) struct Part {
    pub(crate) job: Arc<Job>,
    pub(crate) index: usize,
}

/// Ordered by priority, then arrival.
type Key = (Reverse<i32>, u64);

struct Waiting {
    job: Arc<Job>,
    /// First trajectory not yet in a batch.
    next: usize,
    /// Tokens of those that are not.
    tokens: usize,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<Key, Waiting>,
    /// Where a job is, by id.
    keys: BTreeMap<u64, Key>,
    tokens: usize,
    next_id: u64,
    closed: bool,
    /// Queue tokens answered per second, a running mean over batches.
    rate: Option<f64>,
}

/// Bounded by tokens and by requests.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limits: Limits,
    metrics: Metrics,
}

impl Queue {
    pub(crate) fn new(limits: Limits, metrics: Metrics) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limits, metrics }
    }

    /// Accepts a job whole, or refuses it whole.
    pub(crate) fn push(&self, job: Job) -> Result<u64, Refused> {
        let tokens = job.tokens();
        let limit = self.limits.max_queue_tokens;
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        if tokens > limit {
            return Err(Refused::TooLarge { tokens, limit });
        }
        if state.tokens + tokens > limit || state.jobs.len() >= self.limits.max_queue_requests {
            self.metrics.refused.inc();
            return Err(Refused::Full);
        }
        let id = state.next_id;
        state.next_id += 1;
        let key = (Reverse(job.priority), id);
        state.tokens += tokens;
        state.keys.insert(id, key);
        state.jobs.insert(key, Waiting { job: Arc::new(job), next: 0, tokens });
        self.publish(&state);
        self.changed.notify_all();
        Ok(id)
    }

    /// Takes a job's waiting part back. Unknown ids (the job is all in batches, or answered) are no error.
    pub(crate) fn cancel(&self, id: u64) {
        let mut state = self.state();
        if let Some(key) = state.keys.get(&id).copied() {
            state.remove(key);
            self.publish(&state);
        }
    }

    /// Waits for work and takes the next batch; `None` once the queue is closed and empty.
    pub(crate) fn next_batch(&self) -> Option<Vec<Part>> {
        let mut state = self.state();
        loop {
            state.drop_over();
            let batch = state.take(self.limits.max_batch_tokens);
            self.publish(&state);
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.closed {
                return None;
            }
            // A deadline that passes while its job waits is the job's own timer's affair; nothing here must wake for it.
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more work; what waits is still served.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Ends everything that waits.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.closed = true;
        for (_, waiting) in std::mem::take(&mut state.jobs) {
            waiting.job.fail(JobError::Stopped);
        }
        state.keys.clear();
        state.tokens = 0;
        self.publish(&state);
        self.changed.notify_all();
    }

    /// Tells the queue how fast the worker is.
    pub(crate) fn drained(&self, tokens: usize, time: Duration) {
        let rate = tokens as f64 / time.as_secs_f64().max(1e-6);
        let mut state = self.state();
        state.rate = Some(state.rate.map_or(rate, |old| 0.8 * old + 0.2 * rate));
    }

    /// How long what waits now will take, at least a second, at most five minutes.
    pub(crate) fn retry_after(&self) -> Duration {
        let state = self.state();
        let seconds = state.rate.map_or(1.0, |rate| state.tokens as f64 / rate.max(1.0));
        Duration::from_secs_f64(seconds.ceil().clamp(1.0, 300.0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        self.metrics.queue_requests.set(state.jobs.len() as i64);
        self.metrics.queue_tokens.set(state.tokens as i64);
    }
}

impl State {
    fn remove(&mut self, key: Key) {
        if let Some(waiting) = self.jobs.remove(&key) {
            self.keys.remove(&key.1);
            self.tokens -= waiting.tokens;
        }
    }

    /// Drops jobs that nobody waits for, and ends those whose deadline has passed.
    fn drop_over(&mut self) {
        let now = Instant::now();
        let over: Vec<Key> = self
            .jobs
            .iter()
            .filter(|(_, w)| {
                if w.job.deadline.is_some_and(|d| d <= now) {
                    w.job.fail(JobError::Deadline);
                }
                w.job.is_over()
            })
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.remove(key);
        }
    }

    /// Trajectories in order until the budget is spent; always at least one. What a trajectory has in common with
    /// the one before it costs nothing, as the forest computes it once.
    fn take(&mut self, budget: usize) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut spent = 0;
        while let Some(mut entry) = self.jobs.first_entry() {
            let waiting = entry.get_mut();
            while let Some(trajectory) = waiting.job.trajectories.get(waiting.next) {
                let last = parts.last().map(|p| &p.job.trajectories[p.index]);
                let cost = trajectory.len() - last.map_or(0, |last| common_prefix(last, trajectory));
                if spent + cost > budget && !parts.is_empty() {
                    return parts;
                }
                spent += cost;
                parts.push(Part { job: waiting.job.clone(), index: waiting.next });
                waiting.next += 1;
                waiting.tokens -= trajectory.len();
                self.tokens -= trajectory.len();
            }
            let key = *entry.key();
            self.remove(key);
        }
        parts
    }
}

/// Tokens that two trajectories begin with alike.
fn common_prefix(a: &Trajectory, b: &Trajectory) -> usize {
    if Arc::ptr_eq(&a.prompt_ids, &b.prompt_ids) {
        let same = a.response_ids.iter().zip(b.response_ids.iter()).take_while(|(a, b)| a == b);
        return a.prompt_ids.len() + same.count();
    }
    let ids = |t: &Trajectory| {
        let (prompt, response) = (t.prompt_ids.clone(), t.response_ids.clone());
        (0..t.len()).map(move |i| if i < prompt.len() { prompt[i] } else { response[i - prompt.len()] })
    };
    ids(a).zip(ids(b)).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use qrm_model::reward::TokenScores;
    use tokio::sync::oneshot;

    use super::*;
    use crate::engine::job::JobResult;

    fn queue(max_batch_tokens: usize, max_queue_tokens: usize) -> Queue {
        let limits =
            Limits { max_batch_tokens, max_queue_tokens, max_queue_requests: 100, prefix_cache_bytes: 0 };
        Queue::new(limits, Metrics::new().unwrap())
    }

    fn job(lengths: &[usize], priority: i32) -> (Job, oneshot::Receiver<JobResult>) {
        let (reply, answer) = oneshot::channel();
        let trajectories = lengths.iter().enumerate().map(|(i, length)| Trajectory {
            prompt_ids: vec![i as u32].into(),
            response_ids: vec![7; *length - 1].into(),
        });
        (Job::new(trajectories.collect(), priority, None, reply), answer)
    }

    #[test]
    fn refuses_what_does_not_fit_and_takes_it_back_later() {
        let queue = queue(100, 100);
        let (first, _a) = job(&[60], 0);
        let id = queue.push(first).unwrap();
        let (second, _b) = job(&[60], 0);
        assert_eq!(queue.push(second).err(), Some(Refused::Full));
        assert!(matches!(queue.push(job(&[101], 0).0), Err(Refused::TooLarge { .. })));
        queue.cancel(id);
        let (third, _c) = job(&[60], 0);
        queue.push(third).unwrap();
        queue.close();
        assert_eq!(queue.push(job(&[1], 0).0).err(), Some(Refused::Closed));
        assert_eq!(queue.next_batch().unwrap().len(), 1);
        assert!(queue.next_batch().is_none());
    }

    #[test]
    fn a_higher_priority_goes_first_and_a_group_pays_for_its_prompt_once() {
        let queue = queue(16, 1000);
        let (low, _a) = job(&[10], 0);
        queue.push(low).unwrap();
        let (reply, _b) = oneshot::channel();
        let prompt: Arc<[u32]> = vec![1; 8].into();
        let group =
            (0..4).map(|i| Trajectory { prompt_ids: prompt.clone(), response_ids: vec![i, i].into() });
        queue.push(Job::new(group.collect(), 1, None, reply)).unwrap();
        let batch = queue.next_batch().unwrap();
        assert_eq!(batch.len(), 4, "8 + 4 x 2 tokens fit a budget of 16");
        assert_eq!(batch[0].job.priority, 1);
    }

    proptest! {
        /// Every accepted trajectory comes out exactly once, in batches within the budget.
        #[test]
        fn loses_and_repeats_nothing(jobs in prop::collection::vec(
            (prop::collection::vec(1usize..40, 1..6), -1i32..2), 1..12), budget in 1usize..80)
        {
            let queue = queue(budget, 1 << 20);
            let mut answers = Vec::new();
            for (lengths, priority) in &jobs {
                let (job, answer) = job(lengths, *priority);
                queue.push(job).unwrap();
                answers.push((lengths.len(), answer));
            }
            queue.close();
            while let Some(batch) = queue.next_batch() {
                let tokens: usize = batch.iter().map(|p| p.job.trajectories[p.index].len()).sum();
                let shared: usize = batch.windows(2)
                    .map(|w| common_prefix(&w[0].job.trajectories[w[0].index], &w[1].job.trajectories[w[1].index]))
                    .sum();
                prop_assert!(batch.len() == 1 || tokens - shared <= budget);
                for part in &batch {
                    part.job.complete(part.index, TokenScores::default(), 1);
                    part.job.finish_batch(Duration::ZERO);
                }
            }
            for (count, mut answer) in answers {
                let output = answer.try_recv().unwrap().unwrap();
                prop_assert_eq!((output.scores.len(), output.computed_tokens), (count, count));
            }
        }
    }
}
