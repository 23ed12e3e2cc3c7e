//! Sampling: a policy's answers, token by token.
//!
//! Prompts are prefilled as one forest; the answers to a prompt share its keys and values and grow segments of their own.
//! An answer's tokens depend on the weights, its prompt and its seed alone: not on what is sampled beside it.

use std::sync::Arc;

use candle_transformers::generation::LogitsProcessor;
pub use candle_transformers::generation::Sampling;
use qrm_kernels::{Fresh, KvCache, Segment, linear};
use rayon::prelude::*;

use crate::forest::Forest;
use crate::head::Head;
use crate::reward_model::{ModelError, RewardModel};
use crate::trajectory::Trajectory;

/// How answers are sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Greedy, by temperature, top-k, top-p.
    pub sampling: Sampling,
    /// Longest answer, tokens; the context may end it earlier.
    pub max_new_tokens: usize,
    /// Answers that grow side by side; their keys and values are in memory.
    pub width: usize,
    /// Decides every random choice.
    pub seed: u64,
}

/// One sampled answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its tokens, `[T]`, without the end-of-sequence token.
    pub response_ids: Vec<u32>,
    /// That token; none of an answer that was cut off.
    pub end: Option<u32>,
}

impl RewardModel {
    /// Samples `samples` answers to each prompt, in order. The model has a vocabulary head and names its end of sequence.
    pub fn generate(
        &self,
        prompts: &[Arc<[u32]>],
        samples: usize,
        settings: &Settings,
    ) -> Result<Vec<Vec<Response>>, ModelError> {
        for (index, prompt) in prompts.iter().enumerate() {
            self.check_prompt(prompt).map_err(|message| ModelError::Trajectory { index, message })?;
        }
        let mut all = Vec::with_capacity(prompts.len());
        let prompts_at_once = (settings.width / samples.max(1)).max(1);
        // Kept from wave to wave: what they held is overwritten before it is read, and memory is not asked for again.
        let mut caches = vec![KvCache::default(); self.decoder.layers().len()];
        for (wave, prompts) in prompts.chunks(prompts_at_once).enumerate() {
            let first = wave * prompts_at_once * samples;
            let growth = Growth::start(self, prompts, samples, settings, first, &mut caches)?;
            let answers = growth.run(settings)?;
            let mut answers = answers.into_iter();
            all.extend(prompts.iter().map(|_| answers.by_ref().take(samples).collect()));
        }
        Ok(all)
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), String> {
        if !matches!(self.head, Head::Vocab(_)) {
            return Err("only a vocabulary head can be sampled from".into());
        }
        match prompt.iter().find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(format!("token id {id}, the vocabulary ends at {}", self.vocab_size())),
            None if prompt.is_empty() => Err("the prompt is empty".into()),
            None if prompt.len() >= self.context_length() => {
                let context = self.context_length();
                Err(format!("{} tokens, the context holds {context} with an answer", prompt.len()))
            }
            None => Ok(()),
        }
    }
}

/// Answers that grow side by side.
struct Growth<'a> {
    model: &'a RewardModel,
    /// The prompts' segments, then one for each answer.
    segments: Vec<Segment>,
    /// One a layer.
    caches: &'a mut [KvCache],
    answers: Vec<Answer>,
    /// Index of the first answer's segment.
    first: usize,
}

struct Answer {
    sampler: LogitsProcessor,
    room: usize,
    response: Response,
}

/// Seeds that are far apart for answers next to each other (SplitMix64).
fn seed(seed: u64, answer: usize) -> u64 {
    let mut z = seed.wrapping_add((answer as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl<'a> Growth<'a> {
    /// Prefills the prompts and samples the first token of every answer. `number` is the first answer's, of all.
    fn start(
        model: &'a RewardModel,
        prompts: &[Arc<[u32]>],
        samples: usize,
        settings: &Settings,
        number: usize,
        caches: &'a mut [KvCache],
    ) -> Result<Self, ModelError> {
        let empty = |prompt: &Arc<[u32]>| Trajectory { prompt_ids: prompt.clone(), response_ids: [].into() };
        let forest = Forest::new(&prompts.iter().map(empty).collect::<Vec<_>>());
        let mut segments = forest.segments.to_vec();
        let first = segments.len();
        let (mut answers, mut last) = (Vec::new(), Vec::new());
        let mut start = forest.len();
        for (i, prompt) in prompts.iter().enumerate() {
            let room = settings.max_new_tokens.min(model.context_length() - prompt.len());
            last.push(forest.rows(i)[prompt.len() - 1]);
            for _ in 0..samples {
                let seed = seed(settings.seed, number + answers.len());
                segments.push(Segment { start, len: 0, parent: forest.leaf(i), position: prompt.len() });
                start += room;
                answers.push(Answer {
                    sampler: LogitsProcessor::from_sampling(seed, settings.sampling.clone()),
                    room,
                    response: Response { response_ids: Vec::new(), end: None },
                });
            }
        }
        let mut growth = Self { model, segments, caches, answers, first };
        let fresh: Vec<_> = (0..first).map(|s| Fresh { segment: s, len: growth.segments[s].len }).collect();
        // Each answer of a group reads the same row.
        let rows: Vec<u32> = last.iter().flat_map(|row| std::iter::repeat_n(*row, samples)).collect();
        let all: Vec<usize> = (0..growth.answers.len()).collect();
        if settings.max_new_tokens > 0 && !all.is_empty() {
            growth.sample(&forest.token_ids, &fresh, &rows, &all)?;
        }
        Ok(growth)
    }

    /// Until every answer has ended.
    fn run(mut self, settings: &Settings) -> Result<Vec<Response>, ModelError> {
        for _ in 1..settings.max_new_tokens {
            let open: Vec<usize> = (0..self.answers.len()).filter(|i| self.answers[*i].is_open()).collect();
            if open.is_empty() {
                break;
            }
            let mut token_ids = Vec::with_capacity(open.len());
            for answer in &open {
                token_ids.extend(self.answers[*answer].response.response_ids.last());
                self.segments[self.first + answer].len += 1;
            }
            let fresh: Vec<_> = open.iter().map(|i| Fresh { segment: self.first + i, len: 1 }).collect();
            let rows: Vec<u32> = (0..open.len() as u32).collect();
            self.sample(&token_ids, &fresh, &rows, &open)?;
        }
        Ok(self.answers.into_iter().map(|answer| answer.response).collect())
    }

    /// Runs the decoder over new tokens and samples a token for each of `answers` from its row.
    fn sample(
        &mut self,
        token_ids: &[u32],
        fresh: &[Fresh],
        rows: &[u32],
        answers: &[usize],
    ) -> Result<(), ModelError> {
        let Head::Vocab(weight) = &self.model.head else { return Ok(()) };
        let decoder = &self.model.decoder;
        let hidden = decoder.extend(token_ids, &self.segments, fresh, self.caches, rows)?;
        let logits = linear(&hidden, &weight.detach(), None, None)?;
        let ends = self.model.ends();
        let mut of = vec![None; self.answers.len()];
        answers.iter().enumerate().for_each(|(row, answer)| of[*answer] = Some(row));
        self.answers.par_iter_mut().zip(of).try_for_each(|(answer, row)| match row {
            Some(row) => answer.sample(&logits.get(row)?, &ends),
            None => Ok(()),
        })?;
        Ok(())
    }
}

impl Answer {
    fn is_open(&self) -> bool {
        self.response.end.is_none() && self.response.response_ids.len() < self.room
    }

    fn sample(&mut self, logits: &candle_core::Tensor, ends: &[u32]) -> candle_core::Result<()> {
        let token = self.sampler.sample(logits)?;
        match ends.contains(&token) {
            true => self.response.end = Some(token),
            false => self.response.response_ids.push(token),
        }
        Ok(())
    }
}
