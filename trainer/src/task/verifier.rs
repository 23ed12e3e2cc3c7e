//! Whether a sampled answer is right, and where it first is not.
//!
//! An answer is read line by line. A line may be any equation the problem still needs, its operands known by then, in
//! either order where that is the same; when none is left it must be the result. The first byte that no such line has
//! is the first wrong one: everything before it could still have become right.

use super::problem::{Operand, Operator, Problem, conclusion, equation};

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every line, to the end.
    Right,
    /// Wrong from this byte on. Of an answer that ends too early it is its length.
    Wrong(usize),
}

/// The number after `####`, if the answer gets there.
pub fn final_answer(answer: &str) -> Option<i64> {
    answer.rsplit_once("#### ")?.1.trim().parse().ok()
}

/// Reads `answer` as an answer to `problem`.
pub fn verify(problem: &Problem, answer: &str) -> Verdict {
    let results = problem.results();
    let mut done = vec![false; problem.steps.len()];
    let mut at = 0;
    loop {
        let lines = possible(problem, &results, &done);
        let rest = &answer[at..];
        if let Some((line, step)) = lines.iter().find(|(line, _)| rest.starts_with(line.as_str())) {
            at += line.len();
            match step {
                Some(step) => done[*step] = true,
                None if at == answer.len() => return Verdict::Right,
                None => return Verdict::Wrong(at),
            }
            continue;
        }
        let same = |line: &str| rest.bytes().zip(line.bytes()).take_while(|(a, b)| a == b).count();
        return Verdict::Wrong(at + lines.iter().map(|(line, _)| same(line)).max().unwrap_or(0));
    }
}

/// The lines that may come next, with the step each takes care of; none for the result's.
fn possible(problem: &Problem, results: &[i64], done: &[bool]) -> Vec<(String, Option<usize>)> {
    if done.iter().all(|done| *done) {
        return vec![(conclusion(problem.result()), None)];
    }
    let known = |operand| match operand {
        Operand::Given(n) => Some(n),
        Operand::Step(i) if done[i] => Some(results[i]),
        Operand::Step(_) => None,
    };
    let mut lines = Vec::new();
    for (i, step) in problem.steps.iter().enumerate().filter(|(i, _)| !done[*i]) {
        let (Some(left), Some(right)) = (known(step.left), known(step.right)) else { continue };
        let line = |a, b, operator: Operator| (equation(a, operator, b, results[i]), Some(i));
        lines.push(line(left, right, step.operator));
        if step.operator.commutes() {
            lines.push(line(right, left, step.operator));
        }
    }
    lines
}
