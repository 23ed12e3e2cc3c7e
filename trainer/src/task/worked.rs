//! Worked answers, as differently as people write them.
//!
//! An answer is one equation a line, `So 14 + 15 = 29`, and then the result, `#### 29`. The words before an equation, the
//! order of steps that do not need each other, and which operand of a sum or product comes first are left to chance: what
//! is unlikely is then not wrong, and a reward has to know the difference.

use rand::RngExt;
use rand::rngs::StdRng;

use super::problem::{Operator, Problem, Step};
use super::story::LEADS;

/// How often a step is any that could come next, and not the one that comes first in the story.
const OTHER_STEP: f64 = 0.3;

/// How often the operands of a sum or product change places.
const SWAPPED: f64 = 0.25;

/// A right answer.
pub fn answer(problem: &Problem, rng: &mut StdRng) -> String {
    let results = problem.results();
    let mut text = String::new();
    for i in order(problem, rng) {
        let step = &problem.steps[i];
        text += &line(step.left.value(&results), step.operator, step.right.value(&results), results[i], rng);
    }
    text + &conclusion(problem.result())
}

/// The right answer in the fewest words: what a policy writes that never does what is unlikely.
pub fn plain(problem: &Problem) -> String {
    let results = problem.results();
    let equation = |(step, result): (&Step, &i64)| {
        equation(step.left.value(&results), step.operator, step.right.value(&results), *result)
    };
    problem.steps.iter().zip(&results).map(equation).collect::<String>() + &conclusion(problem.result())
}

/// The steps, each after those that it needs; the last one comes last.
pub(super) fn order(problem: &Problem, rng: &mut StdRng) -> Vec<usize> {
    let mut done = vec![false; problem.steps.len()];
    let mut order = Vec::with_capacity(done.len());
    while order.len() < done.len() {
        let ready: Vec<usize> =
            (0..done.len()).filter(|i| !done[*i] && problem.steps[*i].is_ready(&done)).collect();
        let next =
            if rng.random_bool(OTHER_STEP) { ready[rng.random_range(0..ready.len())] } else { ready[0] };
        done[next] = true;
        order.push(next);
    }
    order
}

/// An equation in some words.
pub(super) fn line(left: i64, operator: Operator, right: i64, result: i64, rng: &mut StdRng) -> String {
    // Some are far more usual than others: two fifths begin with the number, one in fifty with the last.
    let lead = LEADS[(rng.random::<f64>().powi(3) * LEADS.len() as f64) as usize];
    let is_swapped = operator.commutes() && rng.random_bool(SWAPPED);
    let (left, right) = if is_swapped { (right, left) } else { (left, right) };
    format!("{lead}{}", equation(left, operator, right, result))
}

/// A line without words before it.
pub(super) fn equation(left: i64, operator: Operator, right: i64, result: i64) -> String {
    format!("{left} {} {right} = {result}\n", operator.symbol())
}

/// The last line.
pub(super) fn conclusion(result: i64) -> String {
    format!("#### {result}")
}
