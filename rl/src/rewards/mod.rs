//! Rewards from running servers: `POST /v1/rewards` with ids, one request of many trajectories. Several servers take turns;
//! what a later try can mend is tried again, so that a run survives the restart of a server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rollout::Answer;

/// Between tries: the first wait, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

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
}

/// The client.
pub struct Rewards {
    agent: ureq::Agent,
    urls: Vec<String>,
    key: Option<String>,
    /// Name of the reward; none: what the server's model was trained for.
    reward: Option<String>,
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

#[derive(Deserialize)]
struct Reply {
    reward: String,
    data: Vec<Datum>,
}

#[derive(Deserialize)]
struct Datum {
    rewards: String,
}

/// What a try came to.
enum Try {
    Done(Reply),
    /// Worth another try, not before so long.
    Later(String, Duration),
    Never(String),
}

impl Rewards {
    /// Of servers at `urls` (`http://host:port`); gives up when none has answered for `patience`.
    pub fn new(urls: Vec<String>, key: Option<String>, reward: Option<String>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(600))).build().into();
        Self { agent, urls, key, reward, patience, turn: AtomicUsize::new(0) }
    }

    /// One reward for each token of each answer.
    pub fn score(&self, answers: &[Answer]) -> Result<Scored, RewardError> {
        let input = |answer: &Answer| json!({"prompt": *answer.prompt_ids, "response": *answer.response_ids});
        let inputs: Vec<Value> = answers.iter().map(input).collect();
        let body = json!({"inputs": inputs, "encoding_format": "base64", "reward": self.reward}).to_string();
        let (start, mut wait) = (Instant::now(), WAITS.0);
        loop {
            let url = &self.urls[self.turn.fetch_add(1, Ordering::Relaxed) % self.urls.len()];
            match self.attempt(url, &body) {
                Try::Done(reply) => return self.read(url, reply, answers),
                Try::Never(message) => return Err(RewardError::Refused { url: url.clone(), message }),
                Try::Later(message, _) if start.elapsed() > self.patience => {
                    let seconds = start.elapsed().as_secs();
                    return Err(RewardError::Silent { url: url.clone(), seconds, message });
                }
                Try::Later(_, least) => std::thread::sleep(wait.max(least)),
            }
            wait = (wait * 2).min(WAITS.1);
        }
    }

    fn attempt(&self, url: &str, body: &str) -> Try {
        let mut request = self.agent.post(format!("{url}/v1/rewards"));
        request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = match request.send(body) {
            Ok(answer) => answer,
            Err(error) => return Try::Later(error.to_string(), Duration::ZERO),
        };
        let after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let status = answer.status().as_u16();
        let text = match answer.body_mut().with_config().limit(1 << 30).read_to_string() {
            Ok(text) => text,
            Err(error) => return Try::Later(error.to_string(), Duration::ZERO),
        };
        match status {
            200 => match serde_json::from_str(&text) {
                Ok(reply) => Try::Done(reply),
                Err(error) => Try::Never(format!("an answer that is none: {error}")),
            },
            408 | 429 | 500..=599 => Try::Later(text, Duration::from_secs(after.unwrap_or(0))),
            _ => Try::Never(text),
        }
    }

    fn read(&self, url: &str, reply: Reply, answers: &[Answer]) -> Result<Scored, RewardError> {
        let refused = |message: &str| RewardError::Refused { url: url.into(), message: message.into() };
        let floats = |datum: &Datum| {
            let bytes = BASE64_STANDARD.decode(&datum.rewards).ok()?;
            let chunks = bytes.chunks_exact(4).map(|b| b.try_into().map(f32::from_le_bytes).ok());
            chunks.collect::<Option<Vec<f32>>>()
        };
        let rewards: Option<Vec<Vec<f32>>> = reply.data.iter().map(floats).collect();
        let rewards = rewards.ok_or_else(|| refused("rewards that are no base64"))?;
        let lengths = |r: &Vec<f32>, a: &Answer| r.len() == a.response_ids.len();
        match rewards.len() == answers.len() && rewards.iter().zip(answers).all(|(r, a)| lengths(r, a)) {
            true => Ok(Scored { rewards, reward: reply.reward }),
            false => Err(refused("not one reward for each token")),
        }
    }
}
