//! Long work off the async threads, so that no connection waits for another's.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::ApiError;

/// Bytes in or out that are handled where they are: less work than the way to another thread and back.
const LITTLE: usize = 16 << 10;

/// Does `work` on about so many bytes.
pub(crate) async fn run<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= LITTLE {
        return Ok(work());
    }
    on_a_thread(work).await.ok_or_else(|| ApiError::internal("the request failed"))
}

/// Not begun any more once its caller has gone; none: it panicked.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let mut thread = JoinSet::new();
    thread.spawn_blocking(work);
    thread.join_next().await?.ok()
}

/// Threads for what takes long: requests being read and answers written, and a reload beside them.
pub(crate) const THREADS: usize = 32;

/// Texts being tokenised: no more at once than there are cores, and threads are left for all other work.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores.min(THREADS / 2))))
    }

    /// Tokenises when there is a turn; a caller that goes before gives it up.
    pub(crate) async fn tokenize<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = || ApiError::internal("the request could not be read");
        let turn = self.0.clone().acquire_owned().await.map_err(|_| failed())?;
        let work = move || {
            let _until_done = turn;
            work()
        };
        on_a_thread(work).await.ok_or_else(failed)
    }
}
