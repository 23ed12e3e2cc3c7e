//! The queue's hand-over in every order that threads can bring about: each of its operations holds the lock from beginning
//! to end, so an execution is an order of operations, and all orders are tried.

use std::sync::Arc;

use qrm_model::Trajectory;
use qrm_model::reward::TokenScores;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use super::job::JobResult;
use super::queue::{Queue, Refused};
use super::tests::{job, queue, terms, trajectory};

/// What a thread does, step by step.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Job `0..3` comes.
    Push(usize),
    /// Its client goes away.
    Cancel(usize),
    /// A worker takes a batch.
    Take(usize),
    /// It is done with it.
    Finish(usize),
    Close,
}

/// Clients, of whom the first gives up, two workers, and a shutdown. Jobs have trajectories in common.
const THREADS: [&[Step]; 6] = [
    &[Step::Push(0), Step::Cancel(0)],
    &[Step::Push(1)],
    &[Step::Push(2)],
    &[Step::Take(0), Step::Finish(0)],
    &[Step::Take(1), Step::Finish(1)],
    &[Step::Close],
];
const JOBS: [&[u32]; 3] = [&[1, 2], &[1], &[2, 3, 3]];

fn one(id: u32) -> Trajectory {
    trajectory(&[9], &[id])
}

type Pushed = Result<(u64, Receiver<JobResult>), Refused>;

struct Run {
    queue: Arc<Queue>,
    /// Of each job: its id and the way its answer comes, or why it was refused.
    jobs: [Option<Pushed>; 3],
    batches: [Vec<Trajectory>; 2],
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Push(i) => {
                let (job, answer) = job(JOBS[i].iter().map(|id| one(*id)).collect(), terms("", 0));
                self.jobs[i] = Some(self.queue.push(job).map(|id| (id, answer)));
            }
            Step::Cancel(i) => {
                if let Some(Ok((id, answer))) = self.jobs[i].take() {
                    drop(answer);
                    self.queue.cancel(id);
                }
            }
            Step::Take(w) => self.batches[w] = self.queue.try_next_batch(),
            Step::Finish(w) => {
                let batch = std::mem::take(&mut self.batches[w]);
                self.finish(&batch);
            }
            Step::Close => self.queue.close(),
        }
    }

    fn finish(&self, batch: &[Trajectory]) {
        for trajectory in batch {
            let scores =
                TokenScores { logit: vec![trajectory.response_ids[0] as f32], ..TokenScores::default() };
            for part in self.queue.finish(trajectory) {
                part.job.complete(part.index, scores.clone(), 1);
                part.job.finish_batch(std::time::Duration::ZERO);
            }
        }
    }

    /// What is left is served; then every job that was accepted has its answer, and that once.
    fn check(mut self, order: &[Step]) {
        loop {
            let batch = self.queue.try_next_batch();
            if batch.is_empty() {
                break;
            }
            self.finish(&batch);
        }
        for (i, job) in self.jobs.iter_mut().enumerate() {
            match job {
                None => assert_eq!(i, 0, "{order:?}"),
                Some(Err(refused)) => assert_eq!(*refused, Refused::Closed, "{order:?}"),
                Some(Ok((_, answer))) => {
                    let output = answer.try_recv().ok().and_then(Result::ok);
                    let scores = output.unwrap_or_else(|| panic!("job {i} is lost: {order:?}")).scores;
                    let ids = scores.iter().map(|s| s.logit[0] as u32);
                    assert_eq!(ids.collect::<Vec<_>>(), JOBS[i], "{order:?}");
                    assert_eq!(answer.try_recv().err(), Some(TryRecvError::Closed), "{order:?}");
                }
            }
        }
        assert!(self.queue.is_idle(), "{order:?}");
    }
}

fn every_order(done: &mut [usize; 6], order: &mut Vec<Step>, count: &mut usize) {
    let mut is_complete = true;
    for thread in 0..THREADS.len() {
        let Some(step) = THREADS[thread].get(done[thread]) else { continue };
        is_complete = false;
        done[thread] += 1;
        order.push(*step);
        every_order(done, order, count);
        order.pop();
        done[thread] -= 1;
    }
    if is_complete {
        *count += 1;
        let mut run = Run { queue: queue(2.0, 1000), jobs: [None, None, None], batches: Default::default() };
        order.iter().for_each(|step| run.step(*step));
        run.check(order);
    }
}

#[test]
fn no_order_loses_or_repeats_an_answer() {
    let mut count = 0;
    every_order(&mut [0; 6], &mut Vec::new(), &mut count);
    assert_eq!(count, 45_360); // 9! / (2! 2! 2!)
}
