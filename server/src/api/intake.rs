//! Request bodies: how much of them is held at once, and how slowly they may come.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use prometheus::IntGauge;
use tokio::time::Instant;
use tonic::Status;

use crate::connections::UntilTaken;

/// Bytes per second that a body needs, once its first time is up, to be waited for.
const SLOWEST: f64 = 16_384.0;

/// Why a body was not read to its end.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is longer than a body may be.
    TooLarge,
    /// All requests together hold too much.
    Full,
    /// It comes too slowly.
    Slow,
    /// The connection broke, or what came was no HTTP.
    Broken,
}

/// What request bodies may take, and do. A request's share counts until its answer is ready (what it was made into, token
/// ids and scores, grows and goes with it) and is then the answer's, until that is taken.
pub(crate) struct Intake {
    most: usize,
    /// Of one body.
    most_each: usize,
    /// Until a body must be there, or come at the least rate.
    patience: Duration,
    held: AtomicUsize,
    gauge: IntGauge,
}

/// A request's share, for whatever holds some of it: given back with the last.
#[derive(Clone)]
pub(crate) struct Held(Arc<Share>);

struct Share {
    intake: Arc<Intake>,
    bytes: usize,
}

impl Intake {
    /// One body of the most bytes that one may have always fits.
    pub(crate) fn new(most: usize, most_each: usize, patience: Duration, gauge: IntGauge) -> Self {
        Self { most: most.max(most_each), most_each, patience, held: AtomicUsize::new(0), gauge }
    }

    /// Bytes that one body may have.
    pub(crate) fn most_each(&self) -> usize {
        self.most_each
    }

    /// Reads a body to its end.
    pub(crate) async fn read(self: &Arc<Self>, mut body: Body) -> Result<(Vec<u8>, Held), Unread> {
        let start = Instant::now();
        let mut share = Share { intake: self.clone(), bytes: 0 };
        let mut bytes = Vec::new();
        loop {
            let allowed = self.patience + Duration::from_secs_f64(bytes.len() as f64 / SLOWEST);
            let left = allowed.saturating_sub(start.elapsed());
            let frame = tokio::time::timeout(left, body.frame()).await;
            let Some(frame) = frame.map_err(|_| Unread::Slow)? else {
                return Ok((bytes, Held(Arc::new(share))));
            };
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            if bytes.len() + data.len() > self.most_each {
                return Err(Unread::TooLarge);
            }
            share.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
}

impl Intake {
    /// A share for what did not come through [`Intake::read`].
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, Unread> {
        let mut share = Share { intake: self.clone(), bytes: 0 };
        share.grow(bytes)?;
        Ok(Held(Arc::new(share)))
    }

    /// A body that is read as it comes: it breaks off where all requests together hold too much.
    pub(crate) fn meter(self: &Arc<Self>, body: Body) -> (Body, Meter) {
        let meter = Meter(Arc::new(Mutex::new(Share { intake: self.clone(), bytes: 0 })));
        (Body::new(Metered { body, meter: meter.clone() }), meter)
    }
}

/// What of a body has come and is not yet made into anything.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Mutex<Share>>);

impl Meter {
    /// All that has come was taken.
    pub(crate) fn taken(&self) {
        let mut share = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *share = Share { intake: share.intake.clone(), bytes: 0 };
    }
}

struct Metered {
    body: Body,
    meter: Meter,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)?);
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            let mut share = self.meter.0.lock().unwrap_or_else(PoisonError::into_inner);
            if share.grow(data.len()).is_err() {
                // What reads it is gRPC, which looks for a status among an error's causes.
                let full = Status::resource_exhausted("too much is being read and sent");
                return Poll::Ready(Some(Err(axum::Error::new(full))));
            }
        }
        Poll::Ready(frame.map(Ok))
    }
}

impl Held {
    /// A share for an answer of so many bytes instead, be there room or not: who comes next has to wait for it.
    pub(crate) fn becomes(self, bytes: usize) -> UntilTaken {
        let intake = self.0.intake.clone();
        intake.held.fetch_add(bytes, Ordering::AcqRel);
        intake.gauge.add(bytes as i64);
        UntilTaken::new(Share { intake, bytes })
    }

    /// [`Held::becomes`] of an answer that is whole.
    pub(crate) fn stays_with(self, mut response: Response) -> Response {
        let bytes = response.body().size_hint().lower();
        response.extensions_mut().insert(self.becomes(usize::try_from(bytes).unwrap_or(usize::MAX)));
        response
    }
}

impl Share {
    fn grow(&mut self, by: usize) -> Result<(), Unread> {
        let fits = |held: usize| held.checked_add(by).filter(|held| *held <= self.intake.most);
        self.intake.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map_err(|_| Unread::Full)?;
        self.bytes += by;
        self.intake.gauge.add(by as i64);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.intake.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.intake.gauge.sub(self.bytes as i64);
    }
}
