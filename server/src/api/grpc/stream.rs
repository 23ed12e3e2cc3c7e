//! `ScoreStream`: trajectories as they come, each answered as soon as it is scored.
//!
//! What has come is scored whether its answers are taken or not, since others may wait for what it waits for; but only while
//! the client reads is more read from it. One that goes takes its waiting work with it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, unfold};
use prost::Message;
use qrm_proto::RewardsResponse;
use qrm_proto::v1::score_stream_response::Result as Kind;
use qrm_proto::v1::{self, Options, ScoreStreamRequest, ScoreStreamResponse, Summary};
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};
use tracing::{Instrument, Span};

use super::{LOOK, status, wire};
use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::intake::{Held, Meter};
use crate::api::{App, scoring};

/// Inputs of one stream that are at work: enough to fill batches, few enough that streams do not fill the queue.
const AT_ONCE: usize = 1024;

struct Scoring {
    app: Arc<App>,
    client: Client,
    deadline: Option<Instant>,
    meter: Option<Meter>,
    incoming: Streaming<ScoreStreamRequest>,
    /// With the first message.
    options: Option<Options>,
    /// How many there were.
    inputs: u32,
    at_work: JoinSet<Done>,
    /// Ready to be sent.
    ready: VecDeque<ScoreStreamResponse>,
    total: Total,
    /// What comes after the last of `ready`, once no more is at work.
    end: End,
    /// Of the call: what is done for it is done while its answer is written.
    span: Span,
}

/// What an input came to, with its share of what all may hold.
type Done = (Vec<Part>, Held);

/// A message, and what it adds to the summary.
type Part = (ScoreStreamResponse, Option<Summary>);

enum End {
    /// There may be more to read.
    Open,
    /// The client has sent everything.
    Read,
    /// Nothing comes any more.
    Over,
}

/// The answers to what comes in.
pub(super) fn scores(
    app: Arc<App>,
    client: Client,
    deadline: Option<Instant>,
    meter: Option<Meter>,
    incoming: Streaming<ScoreStreamRequest>,
) -> impl Stream<Item = Result<ScoreStreamResponse, Status>> {
    let scoring = Scoring {
        app,
        client,
        deadline,
        meter,
        incoming,
        options: None,
        inputs: 0,
        at_work: JoinSet::new(),
        ready: VecDeque::new(),
        total: Total::default(),
        end: End::Open,
        span: Span::current(),
    };
    unfold(scoring, |mut scoring| async move {
        let next = match scoring.deadline {
            None => scoring.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), scoring.next())
                .await
                .unwrap_or_else(|_| Err(ApiError::deadline().into())),
        };
        if next.is_err() {
            scoring.end = End::Over;
            scoring.at_work.abort_all();
        }
        Some((next.transpose()?, scoring))
    })
}

impl Scoring {
    async fn next(&mut self) -> Result<Option<ScoreStreamResponse>, Status> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            match self.end {
                End::Over => return Ok(None),
                End::Read if self.at_work.is_empty() => {
                    self.end = End::Over;
                    let summary = Kind::Summary(std::mem::take(&mut self.total).summary());
                    return Ok(Some(ScoreStreamResponse { result: Some(summary), ..Default::default() }));
                }
                _ => {}
            }
            let may_read = matches!(self.end, End::Open) && self.at_work.len() < AT_ONCE;
            let idle = self.at_work.is_empty().then_some(self.app.idle_timeout);
            tokio::select! {
                Some(done) = self.at_work.join_next() => {
                    let (parts, held) = done.map_err(|_| ApiError::internal("the request failed"))?;
                    self.take(parts);
                    drop(held);
                }
                message = self.incoming.message(), if may_read => match message {
                    Ok(message) => self.begin(message)?,
                    Err(status) if status.code() == Code::OutOfRange => {
                        return Err(ApiError::body_too_large(self.app.intake.most_each()).into());
                    }
                    Err(status) => return Err(status),
                },
                () = closed(&self.app), if self.at_work.is_empty() => return Err(ApiError::draining().into()),
                () = until(idle) => return Err(Status::cancelled("nothing came for too long")),
            }
        }
    }

    /// A message of the client, or its last was before.
    fn begin(&mut self, message: Option<ScoreStreamRequest>) -> Result<(), Status> {
        let Some(ScoreStreamRequest { options, input }) = message else {
            self.end = End::Read;
            return Ok(());
        };
        if let Some(meter) = &self.meter {
            meter.taken();
        }
        if self.options.is_none() {
            let options = options.unwrap_or_default();
            if !matches!(options.normalize.as_str(), "" | "none") {
                return Err(ApiError::needs_all_rewards().into());
            }
            self.options = Some(options);
        } else if options.is_some() {
            return Err(Status::invalid_argument("options come with the first message only"));
        }
        let Some(input) = input else { return Ok(()) };
        let held = self.app.intake.hold(input.encoded_len()).map_err(|_| self.app.no_room())?;
        let client = Client { arrived: Instant::now(), ..self.client.clone() };
        let (app, deadline) = (self.app.clone(), self.deadline);
        let (options, place) = (self.options.clone().unwrap_or_default(), self.inputs);
        self.inputs = self.inputs.saturating_add(1);
        let work = async move {
            let id = input.id.clone();
            let parts = match one(&app, client, options, input, deadline, &held).await {
                Ok(answer) => parts(answer, place),
                Err(error) => vec![(refusal(error, place, id), None)],
            };
            (parts, held)
        };
        self.at_work.spawn(work.instrument(self.span.clone()));
        Ok(())
    }

    fn take(&mut self, parts: Vec<Part>) {
        for (message, summary) in parts {
            self.ready.push_back(message);
            if let Some(summary) = summary {
                self.total.add(summary);
            }
        }
    }
}

/// After that time, or never.
async fn until(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Until no new work is taken.
async fn closed(app: &App) {
    while !app.models.is_closed() {
        tokio::time::sleep(LOOK).await;
    }
}

/// One input on the way that all requests go.
async fn one(
    app: &App,
    client: Client,
    options: Options,
    input: v1::Input,
    deadline: Option<Instant>,
    held: &Held,
) -> Result<RewardsResponse, ApiError> {
    let native = wire::request(options, vec![input], deadline, client.arrived)?;
    let read = scoring::read(app, client, native, held).await?;
    read.queue_in_turn(app).await?.answer(|answer| answer).await
}

fn parts(mut answer: RewardsResponse, place: u32) -> Vec<Part> {
    let mut summary = Some(wire::summary(&answer));
    let data = std::mem::take(&mut answer.data).into_iter();
    let part = |datum| {
        let trajectory = v1::Trajectory { input: place, ..wire::trajectory(datum) };
        let model_version = answer.model_version.clone();
        let result = Some(Kind::Trajectory(trajectory));
        (ScoreStreamResponse { model_version, result }, summary.take())
    };
    data.map(part).collect()
}

fn refusal(error: ApiError, input: u32, id: String) -> ScoreStreamResponse {
    let error = v1::Error {
        input,
        id,
        status: status::code(&error) as i32,
        code: error.code().to_owned(),
        message: error.message().to_owned(),
        param: error.param().unwrap_or_default().to_owned(),
    };
    ScoreStreamResponse { result: Some(Kind::Error(error)), ..Default::default() }
}

/// The summaries of all inputs as one.
#[derive(Default)]
struct Total {
    last: Option<Summary>,
    stats: v1::Stats,
    usage: v1::Usage,
    /// Σ (r − mean)².
    squares: f64,
}

impl Total {
    fn add(&mut self, summary: Summary) {
        if let Some(usage) = summary.usage {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.response_tokens += usage.response_tokens;
            self.usage.computed_tokens += usage.computed_tokens;
            self.usage.cached_tokens += usage.cached_tokens;
        }
        if let Some(v1::Stats { count, mean, std }) = summary.stats.filter(|stats| stats.count > 0) {
            let (have, more) = (self.stats.count as f64, count as f64);
            let away = mean - self.stats.mean;
            self.squares += std * std * more + away * away * have * more / (have + more);
            self.stats.mean += away * more / (have + more);
            self.stats.count += count;
        }
        self.last = Some(summary);
    }

    fn summary(self) -> Summary {
        let std = (self.squares / self.stats.count.max(1) as f64).sqrt();
        Summary {
            stats: Some(v1::Stats { std, ..self.stats }),
            usage: Some(self.usage),
            timing: None, // of inputs that were at work side by side
            ..self.last.unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use qrm_model::reward::Stats;

    use super::*;

    #[test]
    fn statistics_of_parts_are_those_of_the_whole() {
        let parts: [&[f32]; 4] = [&[-1.0, -2.5], &[-0.25], &[-100.0, -101.0, -99.5], &[-1e-3]];
        let mut total = Total::default();
        for part in parts {
            let Stats { count, mean, std } = Stats::of(part.iter());
            let stats = Some(v1::Stats { count: count as u64, mean, std });
            total.add(Summary { stats, ..Summary::default() });
        }
        let (whole, got) = (Stats::of(parts.concat().iter()), total.summary().stats.expect("stats"));
        assert_eq!(got.count as usize, whole.count);
        assert!((got.mean - whole.mean).abs() < 1e-12 * whole.mean.abs(), "{got:?}, {whole:?}");
        assert!((got.std - whole.std).abs() < 1e-12 * whole.std, "{got:?}, {whole:?}");
    }
}
