//! Answers with one mistake of a known kind, continued consistently from the wrong value.

use rand::RngExt;
use rand::rngs::StdRng;

use super::problem::{Operand, Operator, Problem};
use super::verifier::{Verdict, verify};
use super::worked::{conclusion, line, order};

/// Kinds of mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slip {
    /// A sum or difference that is off by ten: the carry was lost.
    Carry,
    /// Another operator.
    Operator,
    /// A number of the problem with one digit changed.
    Miscopied,
    /// A step left out: its result is taken to be its left operand.
    Skipped,
}

impl Slip {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Carry, Self::Operator, Self::Miscopied, Self::Skipped];
}

/// A worked answer with `slip` at a random step; none where no step takes it, or where it comes out right.
pub fn slip(problem: &Problem, slip: Slip, rng: &mut StdRng) -> Option<String> {
    let at = rng.random_range(0..problem.steps.len());
    let mut results = vec![0; problem.steps.len()];
    let mut text = String::new();
    for i in order(problem, rng) {
        let step = &problem.steps[i];
        let (mut left, mut right) = (step.left.value(&results), step.right.value(&results));
        let mut operator = step.operator;
        let mut shift = 0;
        if i == at {
            match slip {
                Slip::Carry if matches!(operator, Operator::Add | Operator::Subtract) => {
                    shift = if rng.random_bool(0.5) { 10 } else { -10 };
                }
                Slip::Carry => return None,
                Slip::Operator => operator = other(operator, rng),
                Slip::Miscopied => match (step.left, step.right) {
                    (_, Operand::Given(n)) => right = miscopied(n, rng),
                    (Operand::Given(n), _) => left = miscopied(n, rng),
                    _ => return None,
                },
                Slip::Skipped => {
                    results[i] = left;
                    continue;
                }
            }
        }
        if operator == Operator::Divide && (right == 0 || left % right != 0) {
            return None; // no whole number to go on with
        }
        let result = operator.apply(left, right) + shift;
        if result <= 0 {
            return None;
        }
        results[i] = result;
        text += &line(left, operator, right, result, rng);
    }
    text += &conclusion(*results.last()?);
    (verify(problem, &text) != Verdict::Right).then_some(text)
}

fn other(operator: Operator, rng: &mut StdRng) -> Operator {
    loop {
        let other = Operator::ALL[rng.random_range(0..Operator::ALL.len())];
        if other != operator {
            return other;
        }
    }
}

/// One digit changed, the first never to zero.
fn miscopied(n: i64, rng: &mut StdRng) -> i64 {
    let mut digits: Vec<u8> = n.to_string().into_bytes();
    let place = rng.random_range(0..digits.len());
    loop {
        let digit = b'0' + rng.random_range(0..10u8);
        if digit != digits[place] && (place > 0 || digit != b'0') {
            digits[place] = digit;
            return String::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(n + 1);
        }
    }
}
