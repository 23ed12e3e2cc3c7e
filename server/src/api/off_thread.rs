//! Long work off the async threads, so that no connection waits for another's.

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
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::internal("the request failed"))
}
