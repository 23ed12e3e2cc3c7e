//! Why a batch has no scores or gradients.

/// Why a batch could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The numeric layer failed.
    #[error("the decoder failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// A trajectory that the caller should have refused.
    #[error("trajectory {index}: {message}")]
    Trajectory {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A score came out infinite or not a number.
    #[error("trajectory {index}: a score is not finite")]
    NotFinite {
        /// Its place in the batch.
        index: usize,
    },
}

impl ModelError {
    /// The same of a batch that `first` trajectories come before.
    pub(crate) fn after(self, first: usize) -> Self {
        match self {
            Self::Compute(error) => Self::Compute(error),
            Self::Trajectory { index, message } => Self::Trajectory { index: first + index, message },
            Self::NotFinite { index } => Self::NotFinite { index: first + index },
        }
    }
}
