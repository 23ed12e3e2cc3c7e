//! Answers to the task's problems as rows of training data.

use serde_json::{Value, json};

use super::problem::Problem;
use super::verifier::{Verdict, verify};

fn messages(problem: &Problem) -> Value {
    json!([{"role": "user", "content": problem.question}])
}

/// For `sft`.
pub(super) fn answer(problem: &Problem, response: &str) -> Value {
    json!({"messages": messages(problem), "response": response})
}

/// For `qrm`, `orm`, `dpo` and `evaluate`; none where `rejected` is right.
pub(super) fn pair(problem: &Problem, chosen: &str, rejected: &str) -> Option<Value> {
    let Verdict::Wrong(first_wrong) = verify(problem, rejected) else { return None };
    Some(json!({
        "messages": messages(problem), "chosen": chosen, "rejected": rejected, "first_wrong": first_wrong,
    }))
}

/// For `prm`: lines before the first wrong one are right; from there on nothing leads to the result. The line at which a
/// wrong answer ends is wrong too: ending there is its mistake, if it had none before.
pub(super) fn steps(problem: &Problem, response: &str) -> Value {
    let verdict = verify(problem, response);
    let mut end = 0;
    let label = |line: &str| {
        end += line.len();
        let is_right = match verdict {
            Verdict::Right => true,
            Verdict::Wrong(at) => end <= at && end < response.len(),
        };
        json!({"end": end, "label": if is_right { 1 } else { -1 }})
    };
    let steps: Vec<Value> = response.split_inclusive('\n').map(label).collect();
    json!({"messages": messages(problem), "response": response, "steps": steps})
}
