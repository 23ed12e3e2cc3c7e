//! Answers to one question, right against wrong: the pairs that reward models learn from.

use super::verifier::common_prefix;

/// The different answers to one question, in the order in which they were sampled: in any other, such as by their letters, the
/// first of the wrong ones would be told from a right one by that order alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// Right ones.
    pub right: Vec<String>,
    /// Wrong ones.
    pub wrong: Vec<String>,
}

impl Answers {
    /// Adds one, unless it is empty or there already.
    pub fn add(&mut self, answer: String, is_right: bool) {
        let side = if is_right { &mut self.right } else { &mut self.wrong };
        if !answer.is_empty() && !side.contains(&answer) {
            side.push(answer);
        }
    }

    /// A right and a wrong one: `most` of the wrong ones, each with the right one that is the longest the same.
    pub fn pairs(&self, most: usize) -> impl Iterator<Item = (&str, &str)> {
        self.wrong.iter().take(most).filter_map(move |wrong| {
            let right = self.right.iter().max_by_key(|right| common_prefix(right, wrong))?;
            Some((right.as_str(), wrong.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(right: &[&str], wrong: &[&str]) -> Answers {
        let mut answers = Answers::default();
        right.iter().for_each(|answer| answers.add((*answer).to_owned(), true));
        wrong.iter().for_each(|answer| answers.add((*answer).to_owned(), false));
        answers
    }

    /// Alphabetically, one that begins with a digit comes before one that begins with a word.
    #[test]
    fn a_pair_cannot_be_told_by_the_order_of_its_letters() {
        let answers = told(&["So 2", "2", "So 2"], &["Thus 3", "", "1", "Thus 3"]);
        assert_eq!(answers.right, ["So 2", "2"]);
        assert_eq!(answers.wrong, ["Thus 3", "1"]);
    }

    #[test]
    fn a_wrong_answer_is_beside_the_right_one_that_is_the_longest_the_same() {
        let answers = told(&["1 + 1 = 2", "So 1 + 1 = 2"], &["So 1 + 1 = 3", "1 + 2 = 3", "4"]);
        let pairs: Vec<_> = answers.pairs(2).collect();
        assert_eq!(pairs, [("So 1 + 1 = 2", "So 1 + 1 = 3"), ("1 + 1 = 2", "1 + 2 = 3")]);
        assert_eq!(answers.pairs(9).count(), 3);
        assert_eq!(told(&[], &["4"]).pairs(9).count(), 0);
    }
}
