//! Batches through a decoder whose layers are in parts: while one device has a micro-batch, the device before it has the
//! next one (GPipe, arXiv 1811.06965). A trajectory's scores do not depend on the micro-batch that it falls in.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use qrm_kernels::Rows;

use crate::prefix_cache::{Continuation, PrefixCache};
use crate::reward_model::{BatchScores, ModelError, Plan, RewardModel};
use crate::trajectory::Trajectory;

/// Micro-batches for each part: of `m` micro-batches in `p` parts a device stands still for `p − 1` of `m + p − 1` turns.
const EACH: usize = 4;

/// A micro-batch on its way.
struct Flow {
    /// Which of the batch's trajectories.
    range: Range<usize>,
    plan: Plan,
    continued: Continuation,
    /// What the last part gave; nothing of an empty micro-batch.
    x: Option<Rows>,
}

impl RewardModel {
    /// Scores a batch part by part. The first error is what comes back.
    pub(crate) fn pipelined(
        &self,
        batch: &[Trajectory],
        cache: Option<&PrefixCache>,
    ) -> Result<BatchScores, ModelError> {
        let parts = self.decoder.parts();
        let ranges = micro_batches(batch, EACH * parts);
        let mut all = BatchScores { scores: Vec::new(), computed_tokens: Vec::new() };
        std::thread::scope(|scope| {
            let (first, mut flows) = sync_channel(1);
            scope.spawn(move || {
                for range in ranges {
                    let flow = self.enter(batch, range, cache);
                    let failed = flow.is_err();
                    if first.send(flow).is_err() || failed {
                        return;
                    }
                }
            });
            for part in 1..parts {
                let (to, next) = sync_channel(1);
                let from = std::mem::replace(&mut flows, next);
                scope.spawn(move || self.pass(part, &from, &to));
            }
            for flow in flows {
                let Flow { range, plan, mut continued, x } = flow?;
                let first = range.start;
                let scores =
                    self.read(&batch[range], &plan, x, &mut continued).map_err(|e| e.after(first))?;
                if let Some(cache) = cache {
                    cache.keep(continued);
                }
                all.scores.extend(scores.scores);
                all.computed_tokens.extend(scores.computed_tokens);
            }
            Ok(all)
        })
    }

    /// Lays a micro-batch out and takes it through the first part.
    fn enter(
        &self,
        batch: &[Trajectory],
        range: Range<usize>,
        cache: Option<&PrefixCache>,
    ) -> Result<Flow, ModelError> {
        let (first, batch) = (range.start, &batch[range.clone()]);
        let mut continued = cache.map_or_else(Continuation::default, |c| c.find(batch, self.head.lookback()));
        let plan = self.plan(batch, &mut continued).map_err(|e| e.after(first))?;
        let mut flow = Flow { range, plan, continued, x: None };
        if !flow.plan.forest.is_empty() {
            self.advance(0, &mut flow)?;
        }
        Ok(flow)
    }

    /// Takes micro-batches through one part, until there are no more or nobody wants them.
    fn pass(
        &self,
        part: usize,
        from: &Receiver<Result<Flow, ModelError>>,
        to: &SyncSender<Result<Flow, ModelError>>,
    ) {
        for flow in from {
            let flow = flow.and_then(|mut flow| match flow.x {
                Some(_) => self.advance(part, &mut flow).map(|()| flow),
                None => Ok(flow),
            });
            let failed = flow.is_err();
            if to.send(flow).is_err() || failed {
                return;
            }
        }
    }

    fn advance(&self, part: usize, flow: &mut Flow) -> Result<(), ModelError> {
        let Flow { plan, continued, x, .. } = flow;
        *x = Some(self.decoder.through(part, x.take(), &plan.forest, continued, &plan.rows)?);
        Ok(())
    }
}

/// Prompts that a run holds at least, where one may be computed again.
const SHORT: usize = 4;

/// Cuts a batch into about `count` runs of as many tokens, none of them between two answers to one prompt unless that is short
/// beside a run: it is then computed again.
fn micro_batches(batch: &[Trajectory], count: usize) -> Vec<Range<usize>> {
    let tokens: usize = batch.iter().map(Trajectory::len).sum();
    let (mut ranges, mut begin, mut taken) = (Vec::new(), 0, 0);
    for (i, trajectory) in batch.iter().enumerate() {
        taken += trajectory.len();
        let shares = batch.get(i + 1).is_some_and(|next| {
            next.prompt_ids == trajectory.prompt_ids && next.prompt_ids.len() * SHORT * count > tokens
        });
        if i + 1 == batch.len() || (taken * count >= tokens && !shares) {
            ranges.push(begin..i + 1);
            (begin, taken) = (i + 1, 0);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_cut_where_their_prompt_costs_little() {
        let group = |prompt: usize, answers: usize| -> Vec<Trajectory> {
            let prompt_ids: std::sync::Arc<[u32]> = vec![1; prompt].into();
            let response_ids: std::sync::Arc<[u32]> = vec![2; 90].into();
            vec![Trajectory { prompt_ids, response_ids }; answers]
        };
        assert_eq!(micro_batches(&group(10, 16), 4), [0..4, 4..8, 8..12, 12..16]);
        assert_eq!(micro_batches(&group(300, 16), 8).len(), 1, "one long prompt");
        let two = [group(300, 4), group(301, 4)].concat();
        assert_eq!(micro_batches(&two, 8), [0..4, 4..8]);
        assert!(micro_batches(&[], 4).is_empty());
    }
}
