//! `POST /v1/rewards`, with ids; floats come back as base64. `POST /tokenize`.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig, parse_pem};

use super::{Asked, Failed, Scored, TIMEOUT, sum};
use crate::rollout::Answer;

pub(super) struct Client(ureq::Agent);

#[derive(Deserialize)]
struct Reply {
    reward: String,
    model_version: String,
    data: Vec<Datum>,
}

#[derive(Deserialize)]
struct Datum {
    rewards: String,
    entropy: Option<String>,
}

#[derive(Deserialize)]
struct Tokenized {
    tokens: Vec<u32>,
    token_strs: Vec<String>,
}

impl Client {
    pub(super) fn new(asked: &Asked) -> Self {
        let mut config = ureq::Agent::config_builder().http_status_as_error(false);
        if let Some(pem) = &asked.ca {
            let own = parse_pem(pem).filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            let roots = RootCerts::from(own.collect::<Vec<Certificate<'static>>>());
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Self(config.timeout_global(Some(TIMEOUT)).build().into())
    }

    pub(super) fn score(&self, url: &str, asked: &Asked, answers: &[Answer]) -> Result<Scored, Failed> {
        let input = |a: &Answer| json!({"prompt": *a.prompt_ids, "response": *a.response_ids});
        let inputs: Vec<Value> = answers.iter().map(input).collect();
        let body = json!({
            "model": asked.model, "reward": asked.reward, "inputs": inputs, "include": asked.include(),
            "encoding_format": "base64",
        });
        let reply: Reply = self.post(url, "/v1/rewards", asked, &body)?;
        reply.scored().ok_or_else(|| Failed::refused(url, "rewards that are no base64"))
    }

    /// Ids of a text, and the strings that they stand for.
    pub(super) fn tokenize(
        &self,
        url: &str,
        asked: &Asked,
        text: &str,
    ) -> Result<Vec<(u32, String)>, Failed> {
        let body = json!({"model": asked.model, "prompt": text});
        let reply: Tokenized = self.post(url, "/tokenize", asked, &body)?;
        Ok(reply.tokens.into_iter().zip(reply.token_strs).collect())
    }

    fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        route: &str,
        asked: &Asked,
        body: &Value,
    ) -> Result<T, Failed> {
        let mut request = self.0.post(format!("{url}{route}"));
        request = request.header("content-type", "application/json");
        if let Some(key) = &asked.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let later = |error: ureq::Error| Failed::Later(error.to_string(), Duration::ZERO);
        let mut answer = request.send(body.to_string()).map_err(later)?;
        let after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().map_err(later)?;
        match status {
            200 => serde_json::from_str(&text)
                .map_err(|error| Failed::refused(url, format!("an answer that is none: {error}"))),
            408 | 429 | 500..=599 => Err(Failed::Later(text, Duration::from_secs(after.unwrap_or(0)))),
            _ => Err(Failed::refused(url, text)),
        }
    }
}

impl Reply {
    /// None where its rewards are no base64.
    fn scored(self) -> Option<Scored> {
        let floats = |text: &str| {
            let bytes = BASE64_STANDARD.decode(text).ok()?;
            let chunks = bytes.chunks_exact(4).map(|b| b.try_into().map(f32::from_le_bytes).ok());
            chunks.collect::<Option<Vec<f32>>>()
        };
        let of = |datum: &Datum| {
            let more = datum.entropy.as_deref().map_or(Some(Vec::new()), floats)?;
            Some(sum(floats(&datum.rewards)?, &more))
        };
        let rewards = self.data.iter().map(of).collect::<Option<_>>()?;
        Some(Scored { rewards, reward: self.reward, model_version: self.model_version })
    }
}
