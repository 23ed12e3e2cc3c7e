//! Rewards from running servers, requests of many trajectories: `POST /v1/rewards` of `http://`, `qrm.v1` of `grpc://`.
//! Several servers take turns; what a later try can mend is tried again, so that a run survives the restart of a server.

mod grpc;
mod http;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

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
    urls: Vec<String>,
    asked: Asked,
    http: http::Client,
    patience: Duration,
    turn: AtomicUsize,
}

/// What a server says of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// `[T]` of each answer.
    pub rewards: Vec<Vec<f32>>,
    /// The reward's name.
    pub reward: String,
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

/// What a try came to.
enum Try {
    Done(Scored),
    /// Worth another try, not before so long.
    Later(String, Duration),
    Never(String),
}

impl Rewards {
    /// Of servers at `urls` (`http://host:port`, `grpc://host:port`, or `https` and `grpcs`); gives up when none has answered
    /// for `patience`.
    pub fn new(urls: Vec<String>, asked: Asked, patience: Duration) -> Self {
        let urls = urls.into_iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Self { urls, http: http::Client::new(&asked), asked, patience, turn: AtomicUsize::new(0) }
    }

    /// One reward for each token of each answer. Many answers are several requests, which go out side by side.
    pub fn score(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        let size = answers.len().div_ceil(self.urls.len()).clamp(1, MOST);
        let parts: Vec<Result<Scored, RewardError>> = std::thread::scope(|scope| {
            let parts = answers.chunks(size).map(|part| scope.spawn(|| self.request(part)));
            let parts: Vec<_> = parts.collect();
            let of = |part: ScopedJoinHandle<'_, _>| part.join().unwrap_or_else(|e| resume_unwind(e));
            parts.into_iter().map(of).collect()
        });
        let mut all = Scored { rewards: Vec::with_capacity(answers.len()), reward: String::new() };
        for part in parts {
            let Scored { rewards, reward } = part?;
            if !all.rewards.is_empty() && all.reward != reward {
                return Err(RewardError::Apart { one: all.reward, other: reward });
            }
            all.reward = reward;
            all.rewards.extend(rewards);
        }
        Ok(all)
    }

    fn request(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        let (start, mut wait, mut heard) = (Instant::now(), WAITS.0, None);
        loop {
            let url = &self.urls[self.turn.fetch_add(1, Ordering::Relaxed) % self.urls.len()];
            let attempt = match url.starts_with("grpc") {
                true => grpc::attempt(url, &self.asked, answers),
                false => self.http.attempt(url, &self.asked, answers),
            };
            let refused = |message| Err(RewardError::Refused { url: url.clone(), message });
            match attempt {
                Try::Done(scored) if self.asked.with_entropy && scored.reward != "advantage" => {
                    let reward = scored.reward;
                    return refused(format!(
                        "its reward is `{reward}`, and the entropy is a baseline of `advantage`"
                    ));
                }
                Try::Done(scored) if fits(&scored, answers) => return Ok(scored),
                Try::Done(_) => return refused("not one reward for each token".into()),
                Try::Never(message) => return refused(message),
                Try::Later(message, least) => {
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
}

fn fits(scored: &Scored, answers: &[Answer]) -> bool {
    let lengths = |(r, a): (&Vec<f32>, &Answer)| r.len() == a.response_ids.len();
    scored.rewards.len() == answers.len() && scored.rewards.iter().zip(answers).all(lengths)
}
