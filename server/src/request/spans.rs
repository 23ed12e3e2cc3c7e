//! Rewards for a policy with another tokenizer: one for each of its tokens, given as byte ranges of the response.
//!
//! A reward-model token counts for the span that holds its first byte. The spans cover the response without gap or overlap,
//! so that every token counts once and `sum` keeps the total. A span may end within a character; one where no token begins
//! gets 0.

use serde::Deserialize;

use super::answer::finite;

/// How the rewards of a span's tokens become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SpanReduce {
    #[default]
    Sum,
    Mean,
    Last,
}

/// Which token counts for which span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spans {
    /// Of every token, `[T]`.
    of_token: Vec<usize>,
    count: usize,
}

/// A span that is out of place, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSpan {
    pub(crate) index: usize,
    pub(crate) message: String,
}

impl Spans {
    /// `spans` of a response of `bytes` bytes, whose tokens are at `offsets`. What lies behind the text (an appended
    /// end-of-sequence token) counts for the last span.
    pub(crate) fn new(spans: &[[usize; 2]], offsets: &[[usize; 2]], bytes: usize) -> Result<Self, BadSpan> {
        let mut end = 0;
        for (index, [from, to]) in spans.iter().enumerate() {
            if *from != end || to < from || *to > bytes {
                let message = format!("[{from}, {to}] does not go on from byte {end} of {bytes}");
                return Err(BadSpan { index, message });
            }
            end = *to;
        }
        if end != bytes || spans.is_empty() {
            let index = spans.len().saturating_sub(1);
            return Err(BadSpan { index, message: format!("the spans end at byte {end} of {bytes}") });
        }
        let last = spans.len() - 1;
        let of = |[first, _]: &[usize; 2]| spans.partition_point(|[_, end]| end <= first).min(last);
        Ok(Self { of_token: offsets.iter().map(of).collect(), count: spans.len() })
    }

    /// One number per span, of one per token.
    pub(crate) fn reduce(&self, rewards: &[f32], reduce: SpanReduce) -> Vec<f32> {
        let mut sums = vec![(0.0f64, 0usize); self.count];
        for (span, reward) in self.of_token.iter().zip(rewards) {
            let (sum, tokens) = &mut sums[*span];
            *sum = if reduce == SpanReduce::Last { f64::from(*reward) } else { *sum + f64::from(*reward) };
            *tokens += 1;
        }
        let value = |(sum, tokens): (f64, usize)| match reduce {
            SpanReduce::Mean => sum / tokens.max(1) as f64,
            SpanReduce::Sum | SpanReduce::Last => sum,
        };
        sums.into_iter().map(|s| finite(value(s))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_counts_where_it_begins() {
        // "né!" in four tokens, the é cut in two; the policy's tokens cut it too.
        let offsets = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 4]];
        let spans = Spans::new(&[[0, 2], [2, 2], [2, 4]], &offsets, 4).unwrap();
        let rewards = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!(spans.reduce(&rewards, SpanReduce::Sum), [3.0, 0.0, 28.0]);
        assert_eq!(spans.reduce(&rewards, SpanReduce::Mean), [1.5, 0.0, 28.0 / 3.0]);
        assert_eq!(spans.reduce(&rewards, SpanReduce::Last), [2.0, 0.0, 16.0]);
    }

    #[test]
    fn gaps_overlaps_and_ends_elsewhere_are_refused() {
        let at = |spans: &[[usize; 2]]| Spans::new(spans, &[[0, 4]], 4).unwrap_err().index;
        assert_eq!(at(&[[1, 4]]), 0);
        assert_eq!(at(&[[0, 2], [3, 4]]), 1);
        assert_eq!(at(&[[0, 2], [1, 4]]), 1);
        assert_eq!(at(&[[0, 3], [3, 2]]), 1);
        assert_eq!(at(&[[0, 2], [2, 5]]), 1);
        assert_eq!(at(&[[0, 2]]), 0);
        assert_eq!(at(&[]), 0);
    }

    proptest! {
        /// However both sides cut the text.
        #[test]
        fn the_sum_is_kept_and_every_token_counts_once(
            cuts in prop::collection::vec(0usize..60, 0..20), tokens in prop::collection::vec(0usize..60, 1..30))
        {
            let bytes = 60;
            let mut ends: Vec<usize> = cuts.into_iter().chain([bytes]).collect();
            ends.sort_unstable();
            let mut from = 0;
            let spans: Vec<[usize; 2]> = ends.iter().map(|to| [std::mem::replace(&mut from, *to), *to]).collect();
            let mut offsets: Vec<[usize; 2]> = tokens.into_iter().map(|at| [at, at + 1]).collect();
            offsets.sort_unstable();
            // Powers of two: every sum tells which tokens are in it.
            let rewards: Vec<f32> = (0..offsets.len()).map(|i| (i as f32).exp2() * 1e-9).collect();
            let mapped = Spans::new(&spans, &offsets, bytes).unwrap();
            let sums = mapped.reduce(&rewards, SpanReduce::Sum);
            let total = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
            prop_assert!((total(&sums) - total(&rewards)).abs() <= 1e-6 * total(&rewards));
            for (k, [from, to]) in spans.iter().enumerate() {
                let own = offsets.iter().zip(&rewards).filter(|(o, _)| *from <= o[0] && o[0] < *to);
                let own: f64 = own.map(|(_, r)| f64::from(*r)).sum();
                prop_assert!((own - f64::from(sums[k])).abs() <= 1e-6 * own);
            }
        }
    }
}
