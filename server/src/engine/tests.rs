//! Scheduler, queue and worker together, without a model.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use qrm_model::reward::TokenScores;
use qrm_model::{BatchScores, ModelError, Trajectory};
use tokio::sync::oneshot;

use super::cost::Cost;
use super::job::{Job, JobError, JobResult};
use super::queue::{Queue, Refused};
use super::schedule::{Batch, Part, Schedule};
use super::worker::Worker;
use super::{Limits, Terms};
use crate::metrics::Metrics;

const COST: Cost = Cost { per_pair: 0.01, per_row: 0.5 };
const TOKENS: Cost = Cost { per_pair: 0.0, per_row: 0.0 };

pub(super) fn trajectory(prompt: &[u32], response: &[u32]) -> Trajectory {
    Trajectory { prompt_ids: prompt.into(), response_ids: response.into() }
}

pub(super) fn terms(client: &str, priority: i32) -> Terms {
    Terms { client: client.into(), priority, deadline: None }
}

pub(super) fn job(trajectories: Vec<Trajectory>, terms: Terms) -> (Job, oneshot::Receiver<JobResult>) {
    let (reply, answer) = oneshot::channel();
    (Job::new(trajectories, terms, reply), answer)
}

/// `n` trajectories of `tokens` tokens that share nothing with others of another `seed`.
fn unshared(seed: u32, n: u32, tokens: usize) -> Vec<Trajectory> {
    (0..n).map(|i| trajectory(&[seed, i], &vec![7; tokens - 2])).collect()
}

pub(super) fn queue(budget: f64, max_queue_tokens: usize) -> Arc<Queue> {
    let limits = Limits {
        max_batch_tokens: None,
        max_queue_tokens,
        max_queue_requests: 100,
        prefix_cache_bytes: Some(0),
        workers: 1,
        threads: Some(1),
    };
    Arc::new(Queue::new(limits, TOKENS, budget, 1, Metrics::new().unwrap()))
}

/// A schedule with jobs of these clients and priorities; their answers are not waited for.
fn schedule(jobs: Vec<(Vec<Trajectory>, Terms)>) -> Schedule {
    let mut schedule = Schedule::default();
    for (id, (trajectories, terms)) in jobs.into_iter().enumerate() {
        push(&mut schedule, id as u64, trajectories, terms);
    }
    schedule
}

fn push(schedule: &mut Schedule, id: u64, trajectories: Vec<Trajectory>, terms: Terms) {
    let skip = vec![false; trajectories.len()];
    schedule.push(id, Arc::new(job(trajectories, terms).0), &skip);
}

fn clients(batch: &[Part]) -> Vec<&str> {
    batch.iter().map(|part| &*part.job.client).collect()
}

#[test]
fn priority_then_deadline_then_arrival() {
    let at = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
    let one =
        |seed, priority, deadline| (unshared(seed, 1, 10), Terms { client: "a".into(), priority, deadline });
    let mut schedule = schedule(vec![
        one(0, 0, None),
        one(1, 0, at(90)),
        one(2, 1, None),
        one(3, 0, at(60)),
        one(4, 0, None),
    ]);
    let order: Vec<u32> =
        (0..5).map(|_| schedule.take(&TOKENS, 10.0).parts[0].trajectory().prompt_ids[0]).collect();
    assert_eq!(order, [2, 3, 1, 0, 4]);
    assert!(schedule.take(&TOKENS, 10.0).parts.is_empty());
}

#[test]
fn clients_share_alike_and_a_newcomer_does_not_wait() {
    let mut schedule =
        schedule(vec![(unshared(0, 400, 10), terms("bulk", 0)), (unshared(1, 400, 10), terms("other", 0))]);
    for _ in 0..10 {
        let batch = schedule.take(&TOKENS, 100.0).parts;
        let bulk = clients(&batch).into_iter().filter(|c| *c == "bulk").count();
        assert_eq!((batch.len(), bulk), (10, 5));
    }
    push(&mut schedule, 7, unshared(2, 1, 10), terms("small", 0));
    assert!(clients(&schedule.take(&TOKENS, 100.0).parts).contains(&"small"));
    // Having been away is no credit: it gets its share and no more.
    for _ in 0..5 {
        schedule.take(&TOKENS, 100.0);
    }
    push(&mut schedule, 8, unshared(3, 100, 10), terms("small", 0));
    let batch = schedule.take(&TOKENS, 90.0).parts;
    let small = clients(&batch).into_iter().filter(|c| *c == "small").count();
    assert!((3..=4).contains(&small), "{:?}", clients(&batch));
}

#[test]
fn a_client_pays_though_nothing_of_it_waits() {
    let mut schedule = schedule(vec![(unshared(0, 4000, 50), terms("bulk", 0))]);
    let (mut large, mut bulk, mut waits) = (0, 0, false);
    for id in 1..=200 {
        // Always one large request: the next comes when the last was taken.
        if !waits {
            push(&mut schedule, id, unshared(id as u32, 1, 450), terms("large", 0));
        }
        let batch = schedule.take(&TOKENS, 512.0).parts;
        waits = !clients(&batch).contains(&"large");
        for part in batch {
            *(if &*part.job.client == "large" { &mut large } else { &mut bulk }) += part.trajectory().len();
        }
    }
    assert!((0.8..1.25).contains(&(f64::from(large as u32) / f64::from(bulk as u32))), "{large}, {bulk}");
}

#[test]
fn what_begins_alike_comes_along() {
    let prompt: Vec<u32> = (100..140).collect();
    let single = |i: u32| {
        let other = unshared(i, 1, 50).remove(0);
        [
            (vec![other], terms("a", 0)),
            (vec![trajectory(&prompt, &[i; 10])], terms(["a", "b"][i as usize % 2], 0)),
        ]
    };
    let mut schedule = schedule((0..8).flat_map(single).collect());
    // The first is alone, the second brings the seven others of its group: 40 + 8 · 10 tokens.
    let batch = schedule.take(&TOKENS, 50.0 + 120.0).parts;
    let shared = batch.iter().filter(|p| p.trajectory().prompt_ids[..] == prompt[..]).count();
    assert_eq!((batch.len(), shared), (9, 8));
}

proptest! {
    /// Every trajectory comes out once; no batch costs more than the budget, as the forest counts; whoever is first is
    /// in it.
    #[test]
    fn within_budget_and_nothing_lost(
        jobs in prop::collection::vec((
            prop::collection::vec((prop::collection::vec(0u32..2, 1..30), prop::collection::vec(0u32..2, 1..20)), 1..6),
            0u8..3, -1i32..2), 1..12),
        cancelled in prop::collection::btree_set(0u64..12, 0..4),
        budget in 1.0f64..200.0)
    {
        let mut left = BTreeSet::new();
        let mut schedule = Schedule::default();
        for (id, (trajectories, client, priority)) in jobs.iter().enumerate() {
            let trajectories: Vec<_> = trajectories.iter().map(|(p, r)| trajectory(p, r)).collect();
            left.extend((0..trajectories.len()).map(|i| (id as u64, i)));
            // The id stands in the name of the client, so that a part can be told.
            let client = format!("{client} {id}");
            push(&mut schedule, id as u64, trajectories, terms(&client, *priority));
        }
        let mut first = true;
        loop {
            let top = left.iter().map(|(id, _)| jobs[*id as usize].2).max();
            let Batch { parts: batch, cost } = schedule.take(&COST, budget);
            if batch.is_empty() {
                break;
            }
            prop_assert_eq!(Some(batch[0].job.priority), top);
            let mut prefixes = BTreeSet::new();
            let mut rows = 0;
            for part in &batch {
                let t = part.trajectory();
                let ids: Vec<u32> = t.prompt_ids.iter().chain(t.response_ids.iter()).copied().collect();
                (1..=ids.len()).for_each(|end| { prefixes.insert(ids[..end].to_vec()); });
                rows += t.response_ids.len();
                let id: u64 = part.job.client.split_once(' ').unwrap().1.parse().unwrap();
                prop_assert!(left.remove(&(id, part.index)), "{} {} again", id, part.index);
            }
            let pairs: usize = prefixes.iter().map(Vec::len).sum();
            let spent = prefixes.len() as f64 + COST.per_pair * pairs as f64 + COST.per_row * rows as f64;
            prop_assert!(batch.len() == 1 || spent <= budget + 1e-6, "{} of {}", spent, budget);
            prop_assert!((cost - spent).abs() < 1e-6, "{} said to cost {}", spent, cost);
            if std::mem::take(&mut first) {
                for id in &cancelled {
                    schedule.remove(*id);
                    left.retain(|(job, _)| job != id);
                }
            }
        }
        prop_assert!(left.is_empty());
        prop_assert_eq!((schedule.len(), schedule.tokens()), (0, 0));
    }
}

#[test]
fn refuses_what_does_not_fit_and_takes_it_back_later() {
    let queue = queue(100.0, 100);
    let push = |tokens| queue.push(job(unshared(0, 1, tokens), terms("", 0)).0);
    let id = push(60).unwrap();
    assert_eq!(push(60).err(), Some(Refused::Full));
    assert!(matches!(push(101), Err(Refused::TooLarge { .. })));
    queue.cancel(id);
    let _ = push(60); // its answer's receiver is gone: dropped before it is computed
    let (kept, _answer) = job(unshared(1, 1, 40), terms("", 0));
    queue.push(kept).unwrap();
    queue.close();
    assert_eq!(push(1 + 2).err(), Some(Refused::Closed));
    assert_eq!(queue.next_batch().unwrap().len(), 1);
    assert!(queue.next_batch().is_none());
}

/// Every token scores its own id; `poison` fails the batch, `bomb` panics.
fn score(batch: &[Trajectory]) -> Result<BatchScores, ModelError> {
    let has = |id: u32| batch.iter().position(|t| t.response_ids.contains(&id));
    assert!(has(BOMB).is_none(), "a bomb");
    if let Some(index) = has(POISON) {
        return Err(ModelError::NotFinite { index });
    }
    let scores = batch.iter().map(|t| TokenScores {
        logit: t.response_ids.iter().map(|id| *id as f32).collect(),
        ..TokenScores::default()
    });
    Ok(BatchScores { scores: scores.collect(), computed_tokens: batch.iter().map(Trajectory::len).collect() })
}
const POISON: u32 = 666;
const BOMB: u32 = 667;

#[tokio::test]
async fn who_waits_for_room_is_told_of_it() {
    let queue = queue(30.0, 100);
    let (nine, _nine) = job(unshared(0, 9, 10), terms("", 0));
    queue.push(nine).unwrap();
    let wait = |tokens| tokio::time::timeout(Duration::from_millis(50), queue.room(tokens));
    assert!(wait(10).await.is_ok() && wait(101).await.is_ok(), "what can never fit is told so at once");
    assert!(wait(20).await.is_err());
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.room(20).await }
    });
    tokio::task::yield_now().await;
    let (one, _one) = job(unshared(1, 1, 10), terms("", 0));
    queue.push(one).unwrap();
    let batch = queue.next_batch().unwrap();
    assert_eq!(batch.len(), 3);
    waiting.await.unwrap();
    assert_eq!(queue.accepts(20), Ok(()));
    assert_eq!(queue.accepts(40), Err(Refused::Full));
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.room(40).await }
    });
    tokio::task::yield_now().await;
    queue.close();
    waiting.await.unwrap();
    assert_eq!(queue.accepts(40), Err(Refused::Closed));
}

#[test]
fn only_what_fails_fails() {
    let queue = queue(1000.0, 100_000);
    let mut answers = Vec::new();
    for i in 0..40u32 {
        let response = [
            i,
            if i == 13 {
                POISON
            } else if i == 29 {
                BOMB
            } else {
                1
            },
        ];
        let (job, answer) = job(vec![trajectory(&[1], &response), trajectory(&[2], &[i])], terms("", 0));
        queue.push(job).unwrap();
        answers.push(answer);
    }
    queue.close();
    let metrics = Metrics::new().unwrap();
    Worker::new(queue, Box::new(score), metrics.clone()).run();
    for (i, mut answer) in answers.into_iter().enumerate() {
        match (i, answer.try_recv().unwrap()) {
            (13 | 29, answer) => assert!(matches!(answer, Err(JobError::Failed(_)))),
            (i, answer) => assert_eq!(answer.unwrap().scores[1].logit, [i as f32]),
        }
    }
    assert_eq!((metrics.failed_trajectories.get(), metrics.worker_restarts.get()), (2, 0));
}

/// What it had is failed once, not tried trajectory by trajectory; another worker's device may have the rest.
#[test]
fn a_device_that_computes_nothing_any_more_gets_no_more_work() {
    // A batch is one job: each has a token in common.
    let (queue, metrics) = (queue(1.0 + 32.0 * 9.0, 100_000), Metrics::new().unwrap());
    let pushed = |seed| {
        let (job, answer) = job(unshared(seed, 32, 10), terms("", 0));
        queue.push(job).unwrap();
        answer
    };
    let (mut scored, mut lost, mut waits) = (pushed(0), pushed(1), pushed(2));
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let breaks = move |batch: &[Trajectory]| match count.fetch_add(1, Ordering::SeqCst) {
        0 => score(batch),
        _ => Err(ModelError::NotFinite { index: 0 }),
    };
    Worker::new(queue.clone(), Box::new(breaks), metrics.clone()).run();
    assert!(scored.try_recv().unwrap().is_ok());
    assert!(matches!(lost.try_recv(), Ok(Err(JobError::Failed(_)))));
    assert!(matches!(waits.try_recv(), Ok(Err(JobError::Stopped))));
    // The batch, its first halves down to one, and the smallest there is.
    assert_eq!(tries.load(Ordering::SeqCst), 1 + 6 + 1);
    assert!(queue.has_failed() && queue.is_idle() && metrics.failed_trajectories.get() == 1);
}

#[test]
fn what_runs_already_is_not_computed_again() {
    let queue = queue(1000.0, 100_000);
    let same = || job(unshared(0, 3, 10), terms("", 0));
    let (first, mut a) = same();
    queue.push(first).unwrap();
    let batch = queue.next_batch().unwrap();
    let (second, mut b) = same();
    queue.push(second).unwrap();
    queue.close();
    assert!(queue.next_batch().is_none(), "the second waits for the first's batch");
    for (trajectory, scores) in batch.iter().zip(score(&batch).unwrap().scores) {
        for part in queue.finish(trajectory) {
            part.job.complete(part.index, scores.clone(), 10);
            part.job.finish_batch(Duration::ZERO);
        }
    }
    assert_eq!(a.try_recv().unwrap().unwrap().scores, b.try_recv().unwrap().unwrap().scores);
}

#[test]
fn a_worker_that_dies_starts_again() {
    let queue = queue(10.0, 100_000);
    let (first, mut lost) = job(unshared(0, 1, 10), terms("", 0));
    let (second, mut answered) = job(unshared(1, 1, 10), terms("", 0));
    queue.push(first).unwrap();
    queue.push(second).unwrap();
    queue.close();
    let metrics = Metrics::new().unwrap();
    let is_first = AtomicBool::new(true);
    // Scores of the wrong number: nothing a model does, and nothing the worker is ready for.
    let broken = move |batch: &[Trajectory]| match is_first.swap(false, Ordering::SeqCst) {
        true => Ok(BatchScores { scores: Vec::new(), computed_tokens: vec![usize::MAX, 1] }),
        false => score(batch),
    };
    Worker::new(queue, Box::new(broken), metrics.clone()).run();
    assert!(matches!(lost.try_recv(), Ok(Err(JobError::Failed(_)))));
    assert!(answered.try_recv().unwrap().is_ok());
    assert_eq!(metrics.worker_restarts.get(), 1);
}

/// Pushes, cancellations and workers in threads: each job is answered, or its ticket was dropped.
#[test]
fn many_threads_lose_nothing() {
    let queue = queue(50.0, 1 << 20);
    let metrics = Metrics::new().unwrap();
    let worker = || {
        let worker = Worker::new(queue.clone(), Box::new(score), metrics.clone());
        std::thread::spawn(move || worker.run())
    };
    let workers = [worker(), worker()];
    let clients: Vec<_> = (0..4u32)
        .map(|client| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                for i in 0..200u32 {
                    // A quarter of the trajectories is the same for all clients.
                    let seed = if i % 4 == 0 { 0 } else { client + 1 };
                    let (job, answer) = job(unshared(seed, 1 + i % 3, 12), terms(&client.to_string(), 0));
                    let id = queue.push(job).unwrap();
                    if i % 5 == 0 {
                        drop(answer);
                        queue.cancel(id);
                    } else {
                        assert_eq!(answer.blocking_recv().unwrap().unwrap().scores.len(), 1 + i as usize % 3);
                    }
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    queue.close();
    workers.into_iter().for_each(|w| w.join().unwrap());
}
