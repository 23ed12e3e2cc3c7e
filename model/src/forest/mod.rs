//! A batch of trajectories as a forest of token segments: every token that several trajectories have in common
//! appears, and is computed, once.
//!
//! A trajectory is the path from a root to the segment its last token lies in. Prefixes are found with a radix tree over
//! token ids (`tree`); callers give no hints. Segments are laid out depth first, so a segment's rows in the packed batch are
//! contiguous and parents come before their children. A trajectory may continue a prefix whose keys and values are kept
//! elsewhere: it is an ancestor without rows.

mod tree;

use std::sync::Arc;

use qrm_kernels::{BLOCK, Segment};

use crate::trajectory::Trajectory;
use tree::Tree;

/// The packed batch: N unique tokens, no padding.
#[derive(Debug, Clone)]
pub struct Forest {
    /// Token ids, `[N]`.
    pub token_ids: Vec<u32>,
    /// Position of each token in its trajectory, `[N]`.
    pub positions: Arc<[u32]>,
    /// The segments, parents first: those of kept blocks, one each, then those of the packed batch.
    pub segments: Arc<[Segment]>,
    /// Per trajectory: its first tokens, which are in kept blocks and have no rows.
    kept: Vec<usize>,
    /// Per trajectory: the segment that holds its last token.
    leaves: Vec<usize>,
    /// Per trajectory: tokens that no earlier one of the batch had.
    fresh: Vec<usize>,
}

/// Blocks of [`BLOCK`] tokens whose keys and values are kept, as a batch continues them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefixes {
    /// Per block: the one before it; always a smaller index.
    pub(crate) parents: Vec<Option<usize>>,
    /// Per trajectory: the last block of its prefix and the number of its blocks.
    pub(crate) ends: Vec<Option<(usize, usize)>>,
}

impl Forest {
    /// Lays out a batch.
    pub fn new(batch: &[Trajectory]) -> Self {
        Self::after(&Prefixes::default(), batch)
    }

    /// Lays out a batch that continues kept prefixes.
    pub(crate) fn after(prefixes: &Prefixes, batch: &[Trajectory]) -> Self {
        let tree = Tree::of(prefixes, batch);
        let n = tree.tokens();
        let mut segments: Vec<Segment> = Vec::with_capacity(prefixes.parents.len() + tree.nodes.len());
        for (block, parent) in prefixes.parents.iter().enumerate() {
            let position = parent.map_or(0, |parent| segments[parent].position + BLOCK);
            segments.push(Segment { start: n + block * BLOCK, len: BLOCK, parent: *parent, position });
        }
        let (mut token_ids, mut positions) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut leaves = vec![usize::MAX; batch.len()];
        for (parent, root) in &tree.roots {
            let mut stack = tree.below(*root, *parent);
            while let Some((index, parent)) = stack.pop() {
                let node = &tree.nodes[index];
                let (start, segment) = (token_ids.len(), segments.len());
                segments.push(Segment { start, len: node.end - node.begin, parent, position: node.begin });
                token_ids.extend(tree.token_ids(node));
                positions.extend(node.begin as u32..node.end as u32);
                node.ends.iter().for_each(|trajectory| leaves[*trajectory] = segment);
                stack.extend(tree.below(index, Some(segment)));
            }
        }
        let Tree { kept, fresh, .. } = tree;
        Self { token_ids, positions: positions.into(), segments: segments.into(), kept, leaves, fresh }
    }

    /// N: unique tokens.
    pub fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Tokens of a trajectory that no earlier one of the batch had; they add up to N.
    pub fn fresh(&self, trajectory: usize) -> usize {
        self.fresh.get(trajectory).copied().unwrap_or(0)
    }

    /// The segment that holds the last token of a trajectory; none of one without tokens.
    pub fn leaf(&self, trajectory: usize) -> Option<usize> {
        self.leaves.get(trajectory).copied().filter(|leaf| *leaf != usize::MAX)
    }

    /// Tokens at its beginning whose keys and values are kept elsewhere: they have no rows.
    pub fn kept(&self, trajectory: usize) -> usize {
        self.kept.get(trajectory).copied().unwrap_or(0)
    }

    /// Rows of the packed batch that hold tokens `kept .. P + T` of a trajectory, in order.
    pub fn rows(&self, trajectory: usize) -> Vec<u32> {
        let mut chain = Vec::new();
        let mut at = self.leaf(trajectory);
        while let Some(segment) = at.filter(|i| self.segments[*i].start < self.len()) {
            chain.push(&self.segments[segment]);
            at = self.segments[segment].parent;
        }
        chain.iter().rev().flat_map(|s| s.start as u32..(s.start + s.len) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few distinct ids, so that prefixes of every length are shared.
        #[test]
        fn holds_every_trajectory_once(batch in prop::collection::vec(
            (prop::collection::vec(0u32..3, 0..6), prop::collection::vec(0u32..3, 1..6)), 1..20))
        {
            let batch: Vec<_> = batch.into_iter()
                .map(|(p, r)| Trajectory { prompt_ids: p.into(), response_ids: r.into() }).collect();
            let forest = Forest::new(&batch);
            let mut prefixes = std::collections::BTreeSet::new();
            for (i, t) in batch.iter().enumerate() {
                let ids: Vec<u32> = t.prompt_ids.iter().chain(t.response_ids.iter()).copied().collect();
                let rows = forest.rows(i);
                prop_assert_eq!(rows.iter().map(|r| forest.token_ids[*r as usize]).collect::<Vec<_>>(), ids.clone());
                for (position, row) in rows.iter().enumerate() {
                    prop_assert_eq!(forest.positions[*row as usize] as usize, position);
                }
                for end in 1..=ids.len() {
                    prefixes.insert(ids[..end].to_vec());
                }
            }
            prop_assert_eq!(forest.len(), prefixes.len()); // a token is its whole prefix
            prop_assert_eq!((0..batch.len()).map(|i| forest.fresh(i)).sum::<usize>(), forest.len());
            for (i, s) in forest.segments.iter().enumerate() {
                prop_assert!(s.len > 0 && s.parent.is_none_or(|p| p < i));
            }
        }
    }
}
