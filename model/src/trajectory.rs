//! A trajectory: prompt `x` of P tokens and response `a_0 … a_{T-1}`, as token ids.

use std::sync::Arc;

/// The unit of work of the engine. The prompt is shared between the responses of one group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Trajectory {
    /// Prompt token ids, `[P]`. May be empty only for heads that read the response token's own position.
    pub prompt_ids: Arc<[u32]>,
    /// Response token ids, `[T]`, T ≥ 1.
    pub response_ids: Arc<[u32]>,
}

impl Trajectory {
    /// P + T, the number of tokens the decoder would see without any sharing.
    pub fn len(&self) -> usize {
        self.prompt_ids.len() + self.response_ids.len()
    }

    /// Whether it holds no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
