//! How good a policy is: Pass@1 of its greedy answers, Pass@N of sampled ones.

use qrm_model::RewardModel;

use crate::rollout::Sampler;
use crate::signal::pass_at;
use crate::task::Question;

/// Share of questions whose greedy answer is right.
pub fn pass_at_1(policy: &RewardModel, questions: &[Question], max_new_tokens: usize) -> anyhow::Result<f64> {
    let greedy = Sampler { temperature: 0.0, samples: 1, max_new_tokens };
    let answers = greedy.sample(policy, questions, 0)?;
    Ok(answers.iter().filter(|answer| answer.is_right).count() as f64 / questions.len().max(1) as f64)
}

/// Pass@k for each `k`, unbiased, from `n` answers to each question.
pub fn pass_at_n(
    policy: &RewardModel,
    questions: &[Question],
    sampler: Sampler,
    ks: &[usize],
    seed: u64,
) -> anyhow::Result<Vec<f64>> {
    let n = sampler.samples;
    let answers = sampler.sample(policy, questions, seed)?;
    let right: Vec<usize> =
        answers.chunks(n).map(|group| group.iter().filter(|a| a.is_right).count()).collect();
    let mean = |k: &usize| right.iter().map(|c| pass_at(n, *c, *k)).sum::<f64>() / right.len().max(1) as f64;
    Ok(ks.iter().map(mean).collect())
}
