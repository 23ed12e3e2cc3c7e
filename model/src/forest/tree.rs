//! The radix tree over a batch's token ids: what trajectories begin with alike is one run of it.

use std::collections::BTreeMap;

use qrm_kernels::BLOCK;

use super::Prefixes;
use crate::trajectory::Trajectory;

/// A run of tokens.
#[derive(Default)]
pub(super) struct Node {
    /// Whose tokens, and which of them: `begin .. end` of that trajectory.
    trajectory: usize,
    pub(super) begin: usize,
    pub(super) end: usize,
    /// By first token. Ordered, so that the layout does not depend on a hash seed.
    children: BTreeMap<u32, usize>,
    /// Trajectories that end here.
    pub(super) ends: Vec<usize>,
}

/// The tree of a batch.
pub(super) struct Tree<'a> {
    batch: &'a [Trajectory],
    pub(super) nodes: Vec<Node>,
    /// One for each kept block that is continued, and one for what begins at the beginning.
    pub(super) roots: BTreeMap<Option<usize>, usize>,
    /// As [`super::Forest`] has them.
    pub(super) kept: Vec<usize>,
    pub(super) fresh: Vec<usize>,
}

impl<'a> Tree<'a> {
    /// Takes in the trajectories, each from the end of its kept prefix on.
    pub(super) fn of(prefixes: &Prefixes, batch: &'a [Trajectory]) -> Self {
        let (kept, fresh) = (vec![0; batch.len()], vec![0; batch.len()]);
        let mut tree = Self { batch, nodes: Vec::new(), roots: BTreeMap::new(), kept, fresh };
        for i in 0..batch.len() {
            tree.insert(i, prefixes.ends.get(i).copied().flatten());
        }
        tree
    }

    fn insert(&mut self, i: usize, prefix: Option<(usize, usize)>) {
        let mut at = prefix.map_or(0, |(_, blocks)| blocks * BLOCK);
        self.kept[i] = at;
        let mut node = self.root(prefix.map(|(last, _)| last));
        let length = self.batch[i].len();
        while at < length {
            let token = self.token(i, at);
            let Some(&child) = self.nodes[node].children.get(&token) else {
                self.fresh[i] = length - at;
                let leaf = self.push(Node { trajectory: i, begin: at, end: length, ..Node::default() });
                self.nodes[node].children.insert(token, leaf);
                (node, at) = (leaf, length);
                continue;
            };
            let Node { trajectory: other, begin, end, .. } = self.nodes[child];
            let most = (end - begin).min(length - at);
            let is_same = |j: &usize| self.token(i, at + j) == self.token(other, begin + j);
            let same = (0..most).take_while(is_same).count();
            if same < end - begin {
                self.cut(child, begin + same);
            }
            (node, at) = (child, at + same);
        }
        self.nodes[node].ends.push(i);
    }

    fn root(&mut self, block: Option<usize>) -> usize {
        if let Some(root) = self.roots.get(&block) {
            return *root;
        }
        let root = self.push(Node::default());
        self.roots.insert(block, root);
        root
    }

    /// What a node has up to `at` stays in place, the rest of its run moves below it.
    fn cut(&mut self, index: usize, at: usize) {
        let node = &mut self.nodes[index];
        let (trajectory, end) = (node.trajectory, std::mem::replace(&mut node.end, at));
        let (children, ends) = (std::mem::take(&mut node.children), std::mem::take(&mut node.ends));
        let rest = self.push(Node { trajectory, begin: at, end, children, ends });
        let token = self.token(trajectory, at);
        self.nodes[index].children.insert(token, rest);
    }

    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn token(&self, trajectory: usize, at: usize) -> u32 {
        let t = &self.batch[trajectory];
        match at.checked_sub(t.prompt_ids.len()) {
            None => t.prompt_ids[at],
            Some(at) => t.response_ids[at],
        }
    }

    /// Of all nodes.
    pub(super) fn tokens(&self) -> usize {
        self.nodes.iter().map(|node| node.end - node.begin).sum()
    }

    /// Of one.
    pub(super) fn token_ids(&self, node: &Node) -> impl Iterator<Item = u32> {
        (node.begin..node.end).map(|at| self.token(node.trajectory, at))
    }

    /// A node's children, the last first, each with the segment that it continues.
    pub(super) fn below(&self, index: usize, parent: Option<usize>) -> Vec<(usize, Option<usize>)> {
        self.nodes[index].children.values().rev().map(|child| (*child, parent)).collect()
    }
}
