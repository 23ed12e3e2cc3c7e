//! A batch of trajectories as a forest of token segments: every token that several trajectories have in common
//! appears, and is computed, once.
//!
//! A trajectory is the path from a root to the segment its last token lies in. Prefixes are found with a radix tree over
//! token ids; callers give no hints. Segments are laid out depth first, so a segment's rows in the packed batch are
//! contiguous and parents come before their children. A trajectory may continue a prefix whose keys and values are kept
//! elsewhere: it is an ancestor without rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use qrm_kernels::{BLOCK, Segment};

use crate::trajectory::Trajectory;

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

/// A run of tokens of the radix tree while it is built.
#[derive(Default)]
struct Node {
    /// Whose tokens, and which of them: `begin .. end` of that trajectory.
    trajectory: usize,
    begin: usize,
    end: usize,
    /// By first token. Ordered, so that the layout does not depend on a hash seed.
    children: BTreeMap<u32, usize>,
    /// Trajectories that end here.
    ends: Vec<usize>,
}

impl Forest {
    /// Lays out a batch.
    pub fn new(batch: &[Trajectory]) -> Self {
        Self::after(&Prefixes::default(), batch)
    }

    /// Lays out a batch that continues kept prefixes.
    pub(crate) fn after(prefixes: &Prefixes, batch: &[Trajectory]) -> Self {
        let token = |trajectory: usize, at: usize| {
            let t = &batch[trajectory];
            match at.checked_sub(t.prompt_ids.len()) {
                None => t.prompt_ids[at],
                Some(at) => t.response_ids[at],
            }
        };
        let mut nodes: Vec<Node> = Vec::new();
        // One tree for each kept block that is continued, and one for what begins at the beginning.
        let mut roots: BTreeMap<Option<usize>, usize> = BTreeMap::new();
        let (mut fresh, mut kept) = (vec![0; batch.len()], vec![0; batch.len()]);
        for (i, trajectory) in batch.iter().enumerate() {
            let prefix = prefixes.ends.get(i).copied().flatten();
            kept[i] = prefix.map_or(0, |(_, blocks)| blocks * BLOCK);
            let mut at = kept[i];
            let mut node = *roots.entry(prefix.map(|(last, _)| last)).or_insert_with(|| {
                nodes.push(Node::default());
                nodes.len() - 1
            });
            while at < trajectory.len() {
                let Some(&child) = nodes[node].children.get(&token(i, at)) else {
                    let leaf = nodes.len();
                    fresh[i] = trajectory.len() - at;
                    nodes[node].children.insert(token(i, at), leaf);
                    nodes.push(Node {
                        trajectory: i,
                        begin: at,
                        end: trajectory.len(),
                        children: BTreeMap::new(),
                        ends: Vec::new(),
                    });
                    (node, at) = (leaf, trajectory.len());
                    continue;
                };
                let Node { trajectory: other, begin, end, .. } = nodes[child];
                let most = (end - begin).min(trajectory.len() - at);
                let same = (0..most).take_while(|j| token(i, at + j) == token(other, begin + j)).count();
                if same < end - begin {
                    // The common part stays in place, the rest of the run moves below it.
                    let rest = nodes.len();
                    let children = std::mem::take(&mut nodes[child].children);
                    let ends = std::mem::take(&mut nodes[child].ends);
                    nodes.push(Node { trajectory: other, begin: begin + same, end, children, ends });
                    nodes[child].end = begin + same;
                    nodes[child].children.insert(token(other, begin + same), rest);
                }
                (node, at) = (child, at + same);
            }
            nodes[node].ends.push(i);
        }

        let mut forest = Self {
            token_ids: Vec::new(),
            positions: [].into(),
            segments: [].into(),
            kept,
            leaves: vec![usize::MAX; batch.len()],
            fresh,
        };
        let n: usize = nodes.iter().map(|node| node.end - node.begin).sum();
        let mut segments: Vec<Segment> = Vec::with_capacity(prefixes.parents.len() + nodes.len());
        for (block, parent) in prefixes.parents.iter().enumerate() {
            let position = parent.map_or(0, |parent| segments[parent].position + BLOCK);
            segments.push(Segment { start: n + block * BLOCK, len: BLOCK, parent: *parent, position });
        }
        let mut positions = Vec::with_capacity(n);
        let below =
            |node: &Node, parent| node.children.values().rev().map(move |child| (*child, parent)).collect();
        for (parent, root) in &roots {
            let mut stack: Vec<(usize, Option<usize>)> = below(&nodes[*root], *parent);
            while let Some((index, parent)) = stack.pop() {
                let node = &nodes[index];
                let (start, len) = (forest.token_ids.len(), node.end - node.begin);
                let segment = segments.len();
                segments.push(Segment { start, len, parent, position: node.begin });
                forest.token_ids.extend((node.begin..node.end).map(|at| token(node.trajectory, at)));
                positions.extend(node.begin as u32..node.end as u32);
                for trajectory in &node.ends {
                    forest.leaves[*trajectory] = segment;
                }
                stack.extend::<Vec<_>>(below(node, Some(segment)));
            }
        }
        (forest.positions, forest.segments) = (positions.into(), segments.into());
        forest
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
