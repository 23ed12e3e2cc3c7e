//! Which of the waiting work makes the next batch.
//!
//! A batch is led by the work of the highest priority; of that, by the client that has been served least; of its requests,
//! by the earliest deadline, then the earliest arrival. Whatever begins like a leading trajectory comes along, so that the
//! forest computes the beginning once. This goes on until the budget is spent.
//!
//! Fair shares are start-time fair queueing (Goyal, Vin and Cheng, 1996): a client pays for all that is computed for it,
//! whether more of its work waits or not; one that was away for longer than it has to pay for starts level with the others.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use qrm_model::Trajectory;

use super::cost::Cost;
use super::job::Job;

/// A trajectory's place: its job, and which of the job's it is.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) job: Arc<Job>,
    pub(crate) index: usize,
}

impl Part {
    pub(crate) fn trajectory(&self) -> &Trajectory {
        &self.job.trajectories[self.index]
    }
}

/// Clients without work that waits, of which it is known what they were served beyond their turn.
const REMEMBERED: usize = 4096;

/// What is computed together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) parts: Vec<Part>,
    /// Of all of them, what they have in common counted once.
    pub(crate) cost: f64,
}

/// What waits, and whose turn it is.
#[derive(Default)]
pub(crate) struct Schedule {
    jobs: HashMap<u64, Waiting>,
    clients: HashMap<Arc<str>, Client>,
    /// Everything that waits, by its tokens: neighbours have the longest beginnings in common.
    by_tokens: BTreeSet<Sequence>,
    /// What the client that led last had been served.
    now: f64,
    tokens: usize,
}

struct Waiting {
    job: Arc<Job>,
    turn: Turn,
    /// Which of its trajectories are gone from here.
    taken: Vec<bool>,
    /// The first that may not be.
    next: usize,
    left: usize,
}

/// Of a client with work that waits, or that has been served more than whose turn it is.
struct Client {
    served: f64,
    turns: BTreeSet<Turn>,
}

/// Order within a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    priority: Reverse<i32>,
    /// `false` first.
    without_deadline: bool,
    deadline: Option<Instant>,
    id: u64,
}

/// Ordered by tokens.
#[derive(Clone)]
struct Sequence {
    trajectory: Trajectory,
    /// Its job, and which of the job's it is.
    id: u64,
    index: usize,
}

impl Sequence {
    fn new(job: &Job, id: u64, index: usize) -> Self {
        Self { trajectory: job.trajectories[index].clone(), id, index }
    }

    fn tokens(&self) -> impl Iterator<Item = &u32> {
        self.trajectory.prompt_ids.iter().chain(self.trajectory.response_ids.iter())
    }
}

impl Ord for Sequence {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.trajectory, &other.trajectory);
        let tokens = match Arc::ptr_eq(&a.prompt_ids, &b.prompt_ids) {
            true => a.response_ids.cmp(&b.response_ids),
            false => self.tokens().cmp(other.tokens()),
        };
        tokens.then_with(|| (self.id, self.index).cmp(&(other.id, other.index)))
    }
}

impl PartialOrd for Sequence {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sequence {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Sequence {}

/// Tokens that two sequences begin with alike.
fn common_prefix(a: &Sequence, b: &Sequence) -> usize {
    a.tokens().zip(b.tokens()).take_while(|(a, b)| a == b).count()
}

/// The neighbour of `of` with which it has the most in common, and how much that is.
fn nearest<'a>(set: &'a BTreeSet<Sequence>, of: &Sequence) -> Option<(&'a Sequence, usize)> {
    let before = set.range((Bound::Unbounded, Bound::Excluded(of))).next_back();
    let after = set.range((Bound::Excluded(of), Bound::Unbounded)).next();
    before.into_iter().chain(after).map(|n| (n, common_prefix(n, of))).max_by_key(|(_, same)| *same)
}

impl Schedule {
    /// Adds a job; `skip` are its trajectories that need no turn.
    pub(crate) fn push(&mut self, id: u64, job: Arc<Job>, skip: &[bool]) {
        let left = skip.iter().filter(|skip| !**skip).count();
        if left == 0 {
            return;
        }
        let turn = Turn {
            priority: Reverse(job.priority),
            without_deadline: job.deadline.is_none(),
            deadline: job.deadline,
            id,
        };
        for index in (0..skip.len()).filter(|i| !skip[*i]) {
            self.tokens += job.trajectories[index].len();
            self.by_tokens.insert(Sequence::new(&job, id, index));
        }
        let now = self.now;
        let client = self
            .clients
            .entry(job.client.clone())
            .or_insert_with(|| Client { served: now, turns: BTreeSet::new() });
        if client.turns.is_empty() {
            client.served = client.served.max(now);
        }
        client.turns.insert(turn);
        self.jobs.insert(id, Waiting { job, turn, taken: skip.to_vec(), next: 0, left });
    }

    /// Takes back what still waits of a job; an unknown id is no error.
    pub(crate) fn remove(&mut self, id: u64) {
        let Some(waiting) = self.jobs.get(&id) else { return };
        let job = waiting.job.clone();
        let waiting: Vec<usize> = (0..waiting.taken.len()).filter(|i| !waiting.taken[*i]).collect();
        for index in waiting {
            self.remove_part(&Sequence::new(&job, id, index));
        }
    }

    /// Jobs that wait.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = (u64, &Arc<Job>)> {
        self.jobs.iter().map(|(id, waiting)| (*id, &waiting.job))
    }

    /// Number of jobs.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Tokens of the trajectories that wait.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes the next batch: at least one trajectory if any waits, and no more than `budget`, in units of `cost`, unless
    /// it is one alone.
    pub(crate) fn take(&mut self, cost: &Cost, budget: f64) -> Batch {
        self.forget();
        let mut batch = Batch::default();
        let mut sequences = BTreeSet::new();
        while let Some(lead) = self.lead() {
            self.now = self.now.max(self.client(&lead).map_or(0.0, |client| client.served));
            let priority = self.jobs.get(&lead.id).map(|waiting| waiting.job.priority);
            let mut next = Some(lead.clone());
            while let Some(sequence) = next {
                let t = &sequence.trajectory;
                let same = nearest(&sequences, &sequence).map_or(0, |(_, same)| same);
                let price = cost.of(same, t.len(), t.response_ids.len());
                if !batch.parts.is_empty() && batch.cost + price > budget {
                    return batch;
                }
                batch.cost += price;
                if let Some(client) = self.client(&sequence) {
                    client.served += price;
                }
                batch.parts.extend(self.remove_part(&sequence));
                sequences.insert(sequence);
                next = self.companion(&lead, priority);
            }
        }
        batch
    }

    /// After a while without work nobody has to pay for any.
    pub(crate) fn settle(&mut self) {
        self.clients.clear();
    }

    /// Clients of whom there is nothing to know any more.
    fn forget(&mut self) {
        let idle = self.clients.values().filter(|client| client.turns.is_empty()).count();
        let (now, remembers) = (self.now, idle <= REMEMBERED);
        self.clients.retain(|_, c| !c.turns.is_empty() || (remembers && c.served > now));
    }

    /// Whose turn it is.
    fn lead(&self) -> Option<Sequence> {
        let first = |c: &Client| c.turns.first().copied();
        let turn = self.clients.values().filter_map(|c| Some((first(c)?, c.served))).min_by(
            |(a, a_served), (b, b_served)| {
                let priority = a.priority.cmp(&b.priority);
                priority.then(a_served.total_cmp(b_served)).then_with(|| a.cmp(b))
            },
        );
        let id = turn?.0.id;
        let waiting = self.jobs.get(&id)?;
        let index = (waiting.next..waiting.taken.len()).find(|i| !waiting.taken[*i])?;
        Some(Sequence::new(&waiting.job, id, index))
    }

    /// What begins like `lead` and is no less urgent: a quarter of it at least is then computed once instead of twice.
    fn companion(&self, lead: &Sequence, lead_priority: Option<i32>) -> Option<Sequence> {
        let (nearest, same) = nearest(&self.by_tokens, lead)?;
        let is_worth_it = 4 * same >= nearest.trajectory.len();
        let priority = |sequence: &Sequence| self.jobs.get(&sequence.id).map(|w| w.job.priority);
        (is_worth_it && priority(nearest) >= lead_priority).then(|| nearest.clone())
    }

    /// Whose it is, while any of its job waits.
    fn client(&mut self, sequence: &Sequence) -> Option<&mut Client> {
        self.clients.get_mut(&self.jobs.get(&sequence.id)?.job.client)
    }

    fn remove_part(&mut self, sequence: &Sequence) -> Option<Part> {
        if !self.by_tokens.remove(sequence) {
            return None;
        }
        self.tokens -= sequence.trajectory.len();
        let waiting = self.jobs.get_mut(&sequence.id)?;
        let part = Part { job: waiting.job.clone(), index: sequence.index };
        waiting.taken[sequence.index] = true;
        while waiting.taken.get(waiting.next).is_some_and(|taken| *taken) {
            waiting.next += 1;
        }
        waiting.left -= 1;
        if waiting.left == 0 {
            let (turn, name) = (waiting.turn, waiting.job.client.clone());
            self.jobs.remove(&sequence.id);
            if let Some(client) = self.clients.get_mut(&name) {
                client.turns.remove(&turn);
            }
        }
        Some(part)
    }
}
