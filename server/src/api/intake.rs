//! Request bodies: how much of them is held at once, and how slowly they may come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use prometheus::IntGauge;
use tokio::time::Instant;

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

/// What request bodies may take, and do. A request's share counts until its answer is ready: what it was made into
/// (token ids, scores) grows and goes with it.
pub(crate) struct Intake {
    most: usize,
    /// Of one body.
    most_each: usize,
    /// Until a body must be there, or come at the least rate.
    patience: Duration,
    held: AtomicUsize,
    gauge: IntGauge,
}

/// A request's share.
pub(crate) struct Held {
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
        let mut held = Held { intake: self.clone(), bytes: 0 };
        let mut bytes = Vec::new();
        loop {
            let allowed = self.patience + Duration::from_secs_f64(bytes.len() as f64 / SLOWEST);
            let left = allowed.saturating_sub(start.elapsed());
            let frame = tokio::time::timeout(left, body.frame()).await;
            let Some(frame) = frame.map_err(|_| Unread::Slow)? else { return Ok((bytes, held)) };
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            if bytes.len() + data.len() > self.most_each {
                return Err(Unread::TooLarge);
            }
            held.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
}

impl Held {
    fn grow(&mut self, by: usize) -> Result<(), Unread> {
        let fits = |held: usize| held.checked_add(by).filter(|held| *held <= self.intake.most);
        self.intake.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map_err(|_| Unread::Full)?;
        self.bytes += by;
        self.intake.gauge.add(by as i64);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.intake.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.intake.gauge.sub(self.bytes as i64);
    }
}
