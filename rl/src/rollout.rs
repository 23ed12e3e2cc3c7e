//! What the policy samples in a step, and what it is worth. One half is scored while the other is sampled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use qrm_model::{RewardModel, Trajectory};
use qrm_trainer::task::sample::sampling;

use crate::rewards::{RewardError, Rewards, Scored};
use crate::task::Question;

/// One sampled answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Shared by the answers to one question.
    pub prompt_ids: Arc<[u32]>,
    /// With its end-of-sequence token, if it came to it.
    pub response_ids: Arc<[u32]>,
    /// Whether it ends with the right number.
    pub is_right: bool,
    /// Whether it came to its end.
    pub finished: bool,
}

impl Answer {
    /// As models take it.
    pub fn trajectory(&self) -> Trajectory {
        Trajectory { prompt_ids: self.prompt_ids.clone(), response_ids: self.response_ids.clone() }
    }
}

/// How answers are sampled.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    /// 0 = greedy.
    pub temperature: f64,
    /// Answers to a question.
    pub samples: usize,
    /// Longest answer, tokens.
    pub max_new_tokens: usize,
}

/// Where rewards come from.
pub enum Judge {
    /// A running server.
    Server(Box<Rewards>),
    /// The task itself: 1 at the end of a right answer.
    Verifier,
}

/// A step's answers with their rewards.
pub struct Rollout {
    /// The answers to a question follow one another.
    pub answers: Vec<Answer>,
    /// `[T]` each.
    pub rewards: Vec<Vec<f32>>,
    /// The reward's name.
    pub reward: String,
    /// Version of the model that gave all of them; empty where the verifier did.
    pub model_version: String,
    /// Spent in sampling.
    pub sampling: Duration,
    /// Spent by the server, both halves together; most of it while the other half was sampled.
    pub scoring: Duration,
    /// Spent waiting for rewards, with nothing left to sample.
    pub waiting: Duration,
}

impl Sampler {
    /// Answers to all questions, in order.
    pub fn sample(
        &self,
        policy: &RewardModel,
        questions: &[Question],
        seed: u64,
    ) -> anyhow::Result<Vec<Answer>> {
        let settings = sampling(self.temperature, self.max_new_tokens, seed);
        let eos = policy.eos_token_id().context("the policy names no end-of-sequence token")?;
        let prompts: Vec<_> = questions.iter().map(|q| q.prompt_ids.clone()).collect();
        let mut answers = Vec::with_capacity(prompts.len() * self.samples);
        for (question, group) in questions.iter().zip(policy.generate(&prompts, self.samples, &settings)?) {
            for response in group {
                let text = policy.text().decode(&response.response_ids, false)?;
                let (mut ids, finished) = (response.response_ids, response.end.is_some());
                ids.extend(response.end);
                if ids.is_empty() {
                    ids.push(eos); // there was no room for any: something has to be judged
                }
                answers.push(Answer {
                    prompt_ids: question.prompt_ids.clone(),
                    response_ids: ids.into(),
                    is_right: finished && question.is_right(&text),
                    finished,
                });
            }
        }
        Ok(answers)
    }

    /// Samples and has it judged.
    pub fn rollout(
        &self,
        policy: &RewardModel,
        questions: &[Question],
        seed: u64,
        judge: &Judge,
    ) -> anyhow::Result<Rollout> {
        let (first, second) = questions.split_at(questions.len().div_ceil(2));
        std::thread::scope(|scope| {
            let start = Instant::now();
            let one = self.sample(policy, first, seed)?;
            let judged = {
                let one = one.clone();
                scope.spawn(move || judge.score(&one))
            };
            let two = self.sample(policy, second, seed.wrapping_add(1 << 32))?;
            let sampling = start.elapsed();
            let scored_two = judge.score(&two);
            let scored_one = judged.join().map_err(|_| anyhow::anyhow!("the reward client panicked"))?;
            let ((scored_one, time_one), (scored_two, time_two)) = (scored_one?, scored_two?);
            let (answers, mut scoring) = ([one, two].concat(), time_one + time_two);
            let scored = match scored_one.and(scored_two) {
                // New weights may have come between the halves: by now they judge both.
                Err(RewardError::Versions { .. }) => {
                    let (scored, time) = judge.score(&answers)?;
                    scoring += time;
                    scored
                }
                scored => scored?,
            };
            let waiting = start.elapsed() - sampling;
            let Scored { rewards, reward, model_version } = scored;
            Ok(Rollout { answers, rewards, reward, model_version, sampling, scoring, waiting })
        })
    }
}

impl Judge {
    /// Rewards, and how long they took.
    fn score(&self, answers: &[Answer]) -> anyhow::Result<(Scored, Duration)> {
        let start = Instant::now();
        let scored = match self {
            Self::Server(rewards) => rewards.score(answers)?,
            Self::Verifier => {
                let of = |answer: &Answer| {
                    let mut rewards = vec![0.0; answer.response_ids.len()];
                    if let Some(last) = rewards.last_mut() {
                        *last = f32::from(u8::from(answer.is_right));
                    }
                    rewards
                };
                let rewards = answers.iter().map(of).collect();
                Scored { rewards, reward: "verifier".into(), model_version: String::new() }
            }
        };
        Ok((scored, start.elapsed()))
    }
}
