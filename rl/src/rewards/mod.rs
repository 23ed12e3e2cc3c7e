//! Rewards from running servers, requests of many trajectories: `POST /v1/rewards` of `http://`, `qrm.v1` of `grpc://`.
//! Several servers take turns; what a later try can mend is tried again, so that a run survives the restart of a server.

mod grpc;
mod http;
mod vocabulary;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use qrm_model::text::TextProcessor;

use crate::rollout::Answer;

/// Between tries: the first wait, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Answers of a request: a server's own limit is some thousands.
const MOST: usize = 2048;
/// Of one try.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Why there are no rewards.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// Another try would end the same.
    #[error("{url} refuses: {message}")]
    Refused {
        /// Of the server.
        url: String,
        /// Its words.
        message: String,
    },
    /// Nobody answered for long enough to give up.
    #[error("no rewards from {url} for {seconds} s: {message}")]
    Silent {
        /// Of the last server that was tried.
        url: String,
        /// Since the first try.
        seconds: u64,
        /// What was last heard.
        message: String,
    },
    /// Servers that judge by different rewards.
    #[error("one server's reward is `{one}`, another's `{other}`: name one with --reward")]
    Apart {
        /// Of one.
        one: String,
        /// Of another.
        other: String,
    },
    /// Servers that judge by different weights.
    #[error(
        "version {one} of the reward model judges one answer, {other} another: the rewards of a step are scaled together, and \
         have to be from one"
    )]
    Versions {
        /// Of one.
        one: String,
        /// Of another.
        other: String,
    },
    /// Rewards of another text than the policy's.
    #[error(
        "{url} has a model of another vocabulary than the policy's: token {id} is {theirs:?} there and {ours:?} here"
    )]
    Vocabulary {
        /// Of the server.
        url: String,
        /// A token that differs.
        id: u32,
        /// What it stands for there.
        theirs: String,
        /// And for the policy; empty where it has no such token.
        ours: String,
    },
}

/// How servers are asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Name of the model, where a server has several; none: its first.
    pub model: Option<String>,
    /// Name of the reward; none: what the model was trained for.
    pub reward: Option<String>,
    /// Adds the entropy of the model's distribution to every reward: see [`Baseline`](crate::settings::Baseline).
    pub with_entropy: bool,
    /// Key of the servers.
    pub key: Option<String>,
    /// PEM of the authority that signed the servers' certificates; none: the public ones.
    pub ca: Option<Vec<u8>>,
}

/// The client.
pub struct Rewards {
    servers: Vec<Server>,
    /// The ids that are sent are its.
    policy: TextProcessor,
    asked: Asked,
    http: http::Client,
    patience: Duration,
    turn: AtomicUsize,
}

struct Server {
    url: String,
    /// Whether its model is known to have the policy's vocabulary.
    is_checked: AtomicBool,
}

/// What servers say of some answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// `[T]` of each answer.
    pub rewards: Vec<Vec<f32>>,
    /// The reward's name.
    pub reward: String,
    /// Version of the model that gave them; empty where none did.
    pub model_version: String,
}

impl Scored {
    /// With those of more answers, by the same reward and the same weights.
    pub(crate) fn and(mut self, more: Self) -> Result<Self, RewardError> {
        if self.rewards.is_empty() || more.rewards.is_empty() {
            return Ok(if self.rewards.is_empty() { more } else { self });
        }
        if self.reward != more.reward {
            return Err(RewardError::Apart { one: self.reward, other: more.reward });
        }
        if self.model_version != more.model_version {
            return Err(RewardError::Versions { one: self.model_version, other: more.model_version });
        }
        self.rewards.extend(more.rewards);
        Ok(self)
    }
}

impl Asked {
    /// Fields of a trajectory beside its rewards.
    fn include(&self) -> &'static [&'static str] {
        if self.with_entropy { &["entropy"] } else { &[] }
    }
}

/// Rewards and what is added to them, `[T]` each.
fn sum(mut rewards: Vec<f32>, more: &[f32]) -> Vec<f32> {
    rewards.iter_mut().zip(more).for_each(|(r, h)| *r += h);
    rewards
}

/// Why a try came to nothing.
enum Failed {
    /// Another may come to something, not before so long.
    Later(String, Duration),
    /// Another would end the same.
    Never(RewardError),
}

impl Failed {
    fn refused(url: &str, message: impl Into<String>) -> Self {
        Self::Never(RewardError::Refused { url: url.to_owned(), message: message.into() })
    }
}

impl Rewards {
    /// Of servers at `urls` (`http://host:port`, `grpc://host:port`, or `https` and `grpcs`), for a policy of this text; gives
    /// up when none has answered for `patience`.
    pub fn new(urls: Vec<String>, policy: TextProcessor, asked: Asked, patience: Duration) -> Self {
        let server = |url: String| Server {
            url: url.trim_end_matches('/').to_owned(),
            is_checked: AtomicBool::new(false),
        };
        let servers = urls.into_iter().map(server).collect();
        Self { servers, policy, http: http::Client::new(&asked), asked, patience, turn: AtomicUsize::new(0) }
    }

    /// One reward for each token of each answer, all by the same weights. Many answers are several requests, which go out side
    /// by side.
    pub fn score(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        match self.side_by_side(answers) {
            // New weights may have come in between: by now they would have come to all.
            Err(RewardError::Versions { .. }) => self.side_by_side(answers),
            scored => scored,
        }
    }

    fn side_by_side(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        let size = answers.len().div_ceil(self.servers.len()).clamp(1, MOST);
        let parts: Vec<Result<Scored, RewardError>> = std::thread::scope(|scope| {
            let parts = answers.chunks(size).map(|part| scope.spawn(|| self.request(part)));
            let parts: Vec<_> = parts.collect();
            let of = |part: ScopedJoinHandle<'_, _>| part.join().unwrap_or_else(|e| resume_unwind(e));
            parts.into_iter().map(of).collect()
        });
        parts.into_iter().try_fold(Scored::default(), |all, part| all.and(part?))
    }

    fn request(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        let (start, mut wait, mut heard) = (Instant::now(), WAITS.0, None);
        loop {
            let server = &self.servers[self.turn.fetch_add(1, Ordering::Relaxed) % self.servers.len()];
            match self.attempt(server, answers) {
                Ok(scored) => return Ok(scored),
                Err(Failed::Never(error)) => return Err(error),
                Err(Failed::Later(message, least)) => {
                    // Who is gone may come back with another model.
                    server.is_checked.store(false, Ordering::Relaxed);
                    let url = &server.url;
                    let Some(left) = self.patience.checked_sub(start.elapsed()) else {
                        let seconds = start.elapsed().as_secs();
                        return Err(RewardError::Silent { url: url.clone(), seconds, message });
                    };
                    // Whoever waits wants to know for what, once.
                    if heard.replace(message.clone()).is_none_or(|before| before != message) {
                        eprintln!("{url}: {message}; trying again for {} s", left.as_secs());
                    }
                    std::thread::sleep(wait.max(least).min(left));
                }
            }
            wait = (wait * 2).min(WAITS.1);
        }
    }

    fn attempt(&self, server: &Server, answers: &[Answer]) -> Result<Scored, Failed> {
        let (url, asked) = (&server.url, &self.asked);
        let is_grpc = url.starts_with("grpc");
        if !server.is_checked.load(Ordering::Relaxed) {
            let tokens = match is_grpc {
                true => grpc::tokenize(url, asked, vocabulary::TEXT)?,
                false => self.http.tokenize(url, asked, vocabulary::TEXT)?,
            };
            vocabulary::check(url, tokens, &self.policy).map_err(Failed::Never)?;
            server.is_checked.store(true, Ordering::Relaxed);
        }
        let scored = match is_grpc {
            true => grpc::score(url, asked, answers)?,
            false => self.http.score(url, asked, answers)?,
        };
        if asked.with_entropy && scored.reward != "advantage" {
            let reward = scored.reward;
            let message = format!("its reward is `{reward}`, and the entropy is a baseline of `advantage`");
            return Err(Failed::refused(url, message));
        }
        match fits(&scored, answers) {
            true => Ok(scored),
            false => Err(Failed::refused(url, "not one reward for each token")),
        }
    }
}

fn fits(scored: &Scored, answers: &[Answer]) -> bool {
    let lengths = |(r, a): (&Vec<f32>, &Answer)| r.len() == a.response_ids.len();
    scored.rewards.len() == answers.len() && scored.rewards.iter().zip(answers).all(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(reward: &str, model_version: &str) -> Scored {
        let (reward, model_version) = (reward.to_owned(), model_version.to_owned());
        Scored { rewards: vec![vec![1.0]], reward, model_version }
    }

    #[test]
    fn answers_are_judged_by_one_reward_and_one_model() {
        let one = || scored("advantage", "a");
        let both = one().and(one()).unwrap();
        assert_eq!(both, Scored { rewards: vec![vec![1.0]; 2], ..one() });
        // Of no answers there is nothing to compare.
        assert_eq!(one().and(Scored::default()).unwrap(), one());
        assert_eq!(Scored::default().and(one()).unwrap(), one());
        assert!(matches!(one().and(scored("logit", "a")), Err(RewardError::Apart { .. })));
        let error = one().and(scored("advantage", "b")).unwrap_err();
        let RewardError::Versions { one, other } = error else { panic!("{error}") };
        assert_eq!((one.as_str(), other.as_str()), ("a", "b"));
    }
}
