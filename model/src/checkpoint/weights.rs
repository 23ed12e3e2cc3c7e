//! What the readers of weight files have in common.

use std::collections::BTreeMap;

use super::CheckpointError;

/// Stored tensors by Hugging Face name, each to be taken once.
pub(super) trait Weights: Send + Sync {
    /// Shape of a tensor that is there and not yet taken.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// A tensor's elements as f32, row-major. It counts as taken from then on.
    fn take(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError>;

    /// Lets a tensor count as taken that is had from elsewhere.
    fn skip(&mut self, name: &str);

    /// Names of the tensors not taken, sorted.
    fn left(&self) -> Vec<&str>;

    /// Whether there is an output matrix that counts even where the configuration ties it to the embeddings.
    fn has_own_output(&self) -> bool {
        false
    }

    /// The type most elements are stored in.
    fn stored_dtype(&self) -> &str;
}

/// The type with the most elements, of `(type, elements)` per tensor.
pub(super) fn dominant<'a>(tensors: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut counts = BTreeMap::new();
    for (dtype, elements) in tensors {
        let count: &mut usize = counts.entry(dtype).or_default();
        *count = count.saturating_add(elements);
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or("none", |(dtype, _)| dtype).to_owned()
}
