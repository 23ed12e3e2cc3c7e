//! One request's trajectories, from acceptance to answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qrm_model::Trajectory;
use qrm_model::reward::TokenScores;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::Terms;
use crate::telemetry::SPAN;

/// Scores in the order of the job's trajectories, with what they cost.
#[derive(Debug, Default)]
pub(crate) struct JobOutput {
    /// `[T]` each; empty where they were sent in parts.
    pub(crate) scores: Vec<TokenScores>,
    /// Tokens the decoder ran for this job.
    pub(crate) computed_tokens: usize,
    /// From acceptance to the first batch.
    pub(crate) queue_time: Duration,
    /// Of the batches it was part of.
    pub(crate) compute_time: Duration,
}

/// Why a job has no scores.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JobError {
    /// Its deadline passed first.
    #[error("the deadline passed before the result")]
    Deadline,
    /// A batch it was part of failed.
    #[error("the batch failed: {0}")]
    Failed(String),
    /// The server stopped before its turn came.
    #[error("the server is shutting down")]
    Stopped,
}

/// Scores as they are ready: which trajectory's, and they.
pub(crate) type Parts = mpsc::UnboundedSender<(usize, TokenScores)>;

/// A job's end.
pub(crate) type JobResult = Result<JobOutput, JobError>;

/// Shared between the queue (what is left of it) and the batches that hold parts of it.
pub(crate) struct Job {
    /// In request order.
    pub(crate) trajectories: Arc<[Trajectory]>,
    pub(crate) client: Arc<str>,
    /// Higher first.
    pub(crate) priority: i32,
    /// When its answer is no longer wanted.
    pub(crate) deadline: Option<Instant>,
    /// When it was accepted.
    accepted: Instant,
    /// Of the request, for traces.
    pub(crate) span: Span,
    progress: Mutex<Progress>,
}

struct Progress {
    scores: Vec<Option<TokenScores>>,
    left: usize,
    output: JobOutput,
    started: bool,
    /// The span of its waiting; gone once it has started.
    waiting: Span,
    /// Where scores go as they come, rather than to the end of the job. Gone once it has ended.
    parts: Option<Parts>,
    /// Gone once the job has ended.
    reply: Option<oneshot::Sender<JobResult>>,
}

impl Job {
    pub(crate) fn new(
        trajectories: Vec<Trajectory>,
        terms: Terms,
        reply: oneshot::Sender<JobResult>,
    ) -> Self {
        let Terms { client, priority, deadline } = terms;
        let (count, span) = (trajectories.len(), Span::current());
        // Work of the server's own is nobody's trace.
        let waiting = match span.is_disabled() {
            true => Span::none(),
            false => tracing::info_span!(target: SPAN, "queue", trajectories = count),
        };
        let progress = Progress {
            scores: vec![None; count],
            left: count,
            output: JobOutput::default(),
            started: false,
            waiting,
            parts: None,
            reply: Some(reply),
        };
        Self {
            trajectories: trajectories.into(),
            client,
            priority,
            deadline,
            accepted: Instant::now(),
            span,
            progress: Mutex::new(progress),
        }
    }

    /// The same, with its scores sent as they come; its output then has none. They are as many as the job's trajectories:
    /// a slow reader makes them no more.
    pub(crate) fn in_parts(self, parts: Parts) -> Self {
        self.progress().parts = Some(parts);
        self
    }

    /// P + T over all trajectories.
    pub(crate) fn tokens(&self) -> usize {
        self.trajectories.iter().map(Trajectory::len).sum()
    }

    /// Marks that a batch holds a part of it; the time it waited, the first time.
    pub(crate) fn start(&self) -> Option<Duration> {
        let mut progress = self.progress();
        if std::mem::replace(&mut progress.started, true) {
            return None;
        }
        progress.waiting = Span::none();
        progress.output.queue_time = self.accepted.elapsed();
        Some(progress.output.queue_time)
    }

    /// Takes the scores of one trajectory; the last one ends the job.
    pub(crate) fn complete(&self, index: usize, scores: TokenScores, computed_tokens: usize) {
        let mut progress = self.progress();
        let scores = match &progress.parts {
            None => scores,
            Some(parts) => {
                let _ = parts.send((index, scores)); // a client that is gone needs no part
                TokenScores::default()
            }
        };
        if progress.scores[index].replace(scores).is_none() {
            progress.left -= 1;
        }
        progress.output.computed_tokens += computed_tokens;
    }

    /// After a batch: its time counts, and a job with all its scores is answered.
    pub(crate) fn finish_batch(&self, compute_time: Duration) {
        let mut progress = self.progress();
        progress.output.compute_time += compute_time;
        if progress.left > 0 {
            return;
        }
        progress.parts = None;
        if let Some(reply) = progress.reply.take() {
            let mut output = std::mem::take(&mut progress.output);
            output.scores = std::mem::take(&mut progress.scores).into_iter().flatten().collect();
            let _ = reply.send(Ok(output)); // a client that is gone needs no answer
        }
    }

    /// Ends the job without scores. A job that has ended stays as it ended.
    pub(crate) fn fail(&self, error: JobError) {
        let mut progress = self.progress();
        progress.parts = None;
        if let Some(reply) = progress.reply.take() {
            let _ = reply.send(Err(error));
        }
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.progress().reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// A panic elsewhere leaves the counts as they were; they stay usable.
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
