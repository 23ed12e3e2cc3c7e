//! Whether a sampled answer is right, and where it first is not.
//!
//! An answer is read line by line. A line may be any equation the problem still needs, its operands known by then, in
//! either order where that is the same, with any of the usual words before it; when none is left it must be the result.
//! The first byte that no such line has is the first wrong one: everything before it could still have become right.

use super::problem::{Operator, Problem};
use super::story::LEADS;
use super::worked::{conclusion, equation};

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every line, to the end.
    Right,
    /// Wrong from this byte on. Of an answer that ends too early it is its length.
    Wrong(usize),
}

/// The number after `####`, if the answer gets there; thousands may be set off by commas.
pub fn final_answer(answer: &str) -> Option<i64> {
    answer.rsplit_once("####")?.1.trim().replace(',', "").parse().ok()
}

/// Reads `answer` as an answer to `problem`.
pub fn verify(problem: &Problem, answer: &str) -> Verdict {
    let results = problem.results();
    let mut done = vec![false; problem.steps.len()];
    let mut at = 0;
    while !done.iter().all(|done| *done) {
        match read_equation(&answer[at..], &equations(problem, &results, &done)) {
            Ok((length, step)) => {
                at += length;
                done[step] = true;
            }
            Err(same) => return Verdict::Wrong(at + same),
        }
    }
    let (rest, conclusion) = (&answer[at..], conclusion(problem.result()));
    if rest == conclusion { Verdict::Right } else { Verdict::Wrong(at + common_prefix(rest, &conclusion)) }
}

/// The length of the line that `text` begins with and its step; or for how many bytes it might be one.
fn read_equation(text: &str, equations: &[(String, usize)]) -> Result<(usize, usize), usize> {
    let mut same = 0;
    for lead in LEADS {
        let Some(rest) = text.strip_prefix(lead) else {
            same = same.max(common_prefix(text, lead));
            continue;
        };
        for (equation, step) in equations {
            if rest.starts_with(equation) {
                return Ok((lead.len() + equation.len(), *step));
            }
            same = same.max(lead.len() + common_prefix(rest, equation));
        }
    }
    Err(same)
}

/// The equations that may come next, with the step each takes care of.
fn equations(problem: &Problem, results: &[i64], done: &[bool]) -> Vec<(String, usize)> {
    let mut equations = Vec::new();
    for (i, step) in problem.steps.iter().enumerate().filter(|(i, step)| !done[*i] && step.is_ready(done)) {
        let (left, right) = (step.left.value(results), step.right.value(results));
        let line = |a, b, operator: Operator| (equation(a, operator, b, results[i]), i);
        equations.push(line(left, right, step.operator));
        if step.operator.commutes() {
            equations.push(line(right, left, step.operator));
        }
    }
    equations
}

/// How many bytes two texts begin with alike.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
