//! `POST /v1/rewards`, with ids; floats come back as base64.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig, parse_pem};

use super::{Asked, Scored, TIMEOUT, Try, sum};
use crate::rollout::Answer;

pub(super) struct Client(ureq::Agent);

#[derive(Deserialize)]
struct Reply {
    reward: String,
    data: Vec<Datum>,
}

#[derive(Deserialize)]
struct Datum {
    rewards: String,
    entropy: Option<String>,
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

    pub(super) fn attempt(&self, url: &str, asked: &Asked, answers: &[Answer]) -> Try {
        let input = |a: &Answer| json!({"prompt": *a.prompt_ids, "response": *a.response_ids});
        let inputs: Vec<Value> = answers.iter().map(input).collect();
        let body = json!({
            "model": asked.model, "reward": asked.reward, "inputs": inputs, "include": asked.include(),
            "encoding_format": "base64",
        });
        let mut request = self.0.post(format!("{url}/v1/rewards"));
        request = request.header("content-type", "application/json");
        if let Some(key) = &asked.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = match request.send(body.to_string()) {
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
            200 => match serde_json::from_str::<Reply>(&text) {
                Ok(reply) => reply.scored(),
                Err(error) => Try::Never(format!("an answer that is none: {error}")),
            },
            408 | 429 | 500..=599 => Try::Later(text, Duration::from_secs(after.unwrap_or(0))),
            _ => Try::Never(text),
        }
    }
}

impl Reply {
    fn scored(self) -> Try {
        let floats = |text: &str| {
            let bytes = BASE64_STANDARD.decode(text).ok()?;
            let chunks = bytes.chunks_exact(4).map(|b| b.try_into().map(f32::from_le_bytes).ok());
            chunks.collect::<Option<Vec<f32>>>()
        };
        let of = |datum: &Datum| {
            let more = datum.entropy.as_deref().map_or(Some(Vec::new()), floats)?;
            Some(sum(floats(&datum.rewards)?, &more))
        };
        match self.data.iter().map(of).collect() {
            Some(rewards) => Try::Done(Scored { rewards, reward: self.reward }),
            None => Try::Never("rewards that are no base64".into()),
        }
    }
}
