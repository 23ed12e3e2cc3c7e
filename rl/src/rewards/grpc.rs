//! `qrm.v1.RewardService/Score`, with ids.

use std::time::Duration;

use qrm_proto::v1::input::Context;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::{Input, Options, Response, ScoreRequest, ScoreResponse, TokenIds};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::{Asked, Scored, TIMEOUT, Try, sum};
use crate::rollout::Answer;

/// Longest answer, bytes.
const LONGEST: usize = 1 << 30;

/// One call on a connection of its own: a rollout is few calls, and each may go to another server.
pub(super) fn attempt(url: &str, asked: &Asked, answers: &[Answer]) -> Try {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Try::Never(error.to_string()),
    };
    match runtime.block_on(call(url, asked, answers)) {
        Ok(response) => Try::Done(Scored {
            rewards: response.data.into_iter().map(|t| sum(t.rewards, &t.entropy)).collect(),
            reward: response.summary.unwrap_or_default().reward,
        }),
        Err(status) => refused(&status),
    }
}

async fn call(url: &str, asked: &Asked, answers: &[Answer]) -> Result<ScoreResponse, Status> {
    let invalid = |error: tonic::transport::Error| Status::invalid_argument(format!("{url}: {error}"));
    let mut endpoint =
        Endpoint::from_shared(url.replacen("grpc", "http", 1)).map_err(invalid)?.timeout(TIMEOUT);
    if url.starts_with("grpcs") {
        let tls = match &asked.ca {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_webpki_roots(),
        };
        endpoint = endpoint.tls_config(tls).map_err(invalid)?;
    }
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(reasons(&error)))?;
    let mut client = RewardServiceClient::new(channel).max_decoding_message_size(LONGEST);
    let mut request = Request::new(ScoreRequest {
        options: Some(Options {
            model: asked.model.clone().unwrap_or_default(),
            reward: asked.reward.clone().unwrap_or_default(),
            include: asked.include().iter().map(|name| (*name).into()).collect(),
            ..Options::default()
        }),
        inputs: answers.iter().map(input).collect(),
    });
    if let Some(key) = &asked.key {
        let bearer = format!("Bearer {key}").parse();
        let bearer = bearer.map_err(|_| Status::invalid_argument("the key is no header value"))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    Ok(client.score(request).await?.into_inner())
}

fn input(answer: &Answer) -> Input {
    let ids = |ids: &[u32]| TokenIds { ids: ids.to_vec() };
    Input {
        context: Some(Context::PromptIds(ids(&answer.prompt_ids))),
        responses: vec![Response { content: Some(Content::Ids(ids(&answer.response_ids))) }],
        ..Input::default()
    }
}

/// What the server may have answered otherwise a moment later is tried again.
fn refused(status: &Status) -> Try {
    let after = status.metadata().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
    let message = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Try::Later(message, Duration::from_secs(after.unwrap_or(0))),
        _ => Try::Never(message),
    }
}

/// A transport error says little without those below it.
fn reasons(error: &dyn std::error::Error) -> String {
    let below = std::iter::successors(error.source(), |error| error.source());
    below.fold(error.to_string(), |all, next| format!("{all}: {next}"))
}
