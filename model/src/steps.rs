//! Where the steps of a response end, for step-level reward models (Lightman et al., arXiv 2305.20050).

use crate::text::TextProcessor;

/// How a step-level reward model divides responses, from `qrm_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Steps {
    /// What ends a step.
    pub(crate) separator: String,
    /// The scalar is squashed by tanh, as it was in training.
    pub(crate) tanh: bool,
}

impl Steps {
    /// The `[T]` rewards: the scalar at the last token of each step, zeros elsewhere.
    pub(crate) fn rewards(&self, text: &TextProcessor, ids: &[u32], logit: &[f32]) -> Vec<f32> {
        let pieces: Vec<_> = ids.iter().map(|id| text.bytes(*id)).collect();
        self.at(&ends(&pieces, self.separator.as_bytes()), logit)
    }

    /// The same where the last token of each step is known.
    pub(crate) fn at(&self, last_tokens: &[usize], logit: &[f32]) -> Vec<f32> {
        let mut rewards = vec![0.0; logit.len()];
        for &last in last_tokens {
            if let (Some(reward), Some(z)) = (rewards.get_mut(last), logit.get(last)) {
                *reward = if self.tanh { z.tanh() } else { *z };
            }
        }
        rewards
    }
}

/// The last token of each step: the one that completes a separator, the last of several that follow one another with
/// nothing but space between them, and the last of all.
fn ends(pieces: &[Vec<u8>], separator: &[u8]) -> Vec<usize> {
    let text = pieces.concat();
    let mut token_ends = Vec::with_capacity(pieces.len());
    let mut at = 0;
    for piece in pieces {
        at += piece.len();
        token_ends.push(at);
    }
    let mut ends: Vec<usize> = Vec::new();
    let mut from = 0;
    while let Some(length) = find(&text[from..], separator) {
        let begin = from + length;
        let end = begin + separator.len();
        if String::from_utf8_lossy(&text[from..begin]).trim().is_empty() {
            ends.pop(); // an empty step belongs to the one before it
        }
        ends.push(token_ends.partition_point(|token_end| *token_end < end));
        from = end;
    }
    if let Some(last) = pieces.len().checked_sub(1) {
        // What follows the last separator is a step where it says anything; an end-of-sequence token alone does too.
        if ends.last() != Some(&last) {
            ends.push(last);
        }
    }
    ends.dedup();
    ends
}

/// Where a separator begins, if there is one.
fn find(text: &[u8], separator: &[u8]) -> Option<usize> {
    match separator {
        [] => None,
        _ => text.windows(separator.len()).position(|window| window == separator),
    }
}

#[cfg(test)]
mod tests {
    use super::ends;

    fn of(pieces: &[&str], separator: &str) -> Vec<usize> {
        ends(&pieces.iter().map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>(), separator.as_bytes())
    }

    #[test]
    fn steps_end_where_their_separator_does() {
        assert_eq!(of(&["a", "b", ".\n", "c", "\n", "d"], "\n"), [2, 4, 5]);
        assert_eq!(of(&["a", "\n", "\n", "b"], "\n"), [2, 3]);
        assert_eq!(of(&["a", "\n", "\n", "b", "\n"], "\n\n"), [2, 4]);
        assert_eq!(of(&["a\nb\nc", "d"], "\n"), [0, 1]);
        assert_eq!(of(&["a"], "\n"), [0]);
        assert_eq!(of(&["\n"], "\n"), [0]);
        assert_eq!(of(&[], "\n"), Vec::<usize>::new());
        assert_eq!(of(&["a", "b"], ""), [1]);
    }
}
