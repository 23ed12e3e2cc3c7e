//! `qrm.v1.RewardService`: `Score`, with ids, and `Tokenize`.

use std::time::Duration;

use qrm_proto::v1::input::Context;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::{
    Input, Options, Response, ScoreRequest, ScoreResponse, TokenIds, TokenizeRequest, TokenizeResponse,
    tokenize_request,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::{Asked, Failed, Scored, TIMEOUT, sum};
use crate::rollout::Answer;

/// Longest answer, bytes.
const LONGEST: usize = 1 << 30;

pub(super) fn score(url: &str, asked: &Asked, answers: &[Answer]) -> Result<Scored, Failed> {
    let response = wait(url, call_score(url, asked, answers))?;
    let summary = response.summary.unwrap_or_default();
    Ok(Scored {
        rewards: response.data.into_iter().map(|t| sum(t.rewards, &t.entropy)).collect(),
        reward: summary.reward,
        model_version: summary.model_version,
    })
}

/// Ids of a text, and the strings that they stand for.
pub(super) fn tokenize(url: &str, asked: &Asked, text: &str) -> Result<Vec<(u32, String)>, Failed> {
    let response = wait(url, call_tokenize(url, asked, text))?;
    Ok(response.tokens.into_iter().zip(response.token_strs).collect())
}

fn wait<T>(url: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::refused(url, error.to_string()))?;
    runtime.block_on(call).map_err(|status| failed(url, &status))
}

async fn call_score(url: &str, asked: &Asked, answers: &[Answer]) -> Result<ScoreResponse, Status> {
    let request = ScoreRequest {
        options: Some(Options {
            model: asked.model.clone().unwrap_or_default(),
            reward: asked.reward.clone().unwrap_or_default(),
            include: asked.include().iter().map(|name| (*name).into()).collect(),
            ..Options::default()
        }),
        inputs: answers.iter().map(input).collect(),
    };
    let mut client = connect(url, asked).await?;
    Ok(client.score(with_key(asked, request)?).await?.into_inner())
}

async fn call_tokenize(url: &str, asked: &Asked, text: &str) -> Result<TokenizeResponse, Status> {
    let request = TokenizeRequest {
        model: asked.model.clone().unwrap_or_default(),
        content: Some(tokenize_request::Content::Prompt(text.to_owned())),
        ..TokenizeRequest::default()
    };
    let mut client = connect(url, asked).await?;
    Ok(client.tokenize(with_key(asked, request)?).await?.into_inner())
}

/// A connection of its own for every call: a rollout is few calls, and each may go to another server.
async fn connect(url: &str, asked: &Asked) -> Result<RewardServiceClient<Channel>, Status> {
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
    Ok(RewardServiceClient::new(channel).max_decoding_message_size(LONGEST))
}

fn with_key<T>(asked: &Asked, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    if let Some(key) = &asked.key {
        let bearer = format!("Bearer {key}").parse();
        let bearer = bearer.map_err(|_| Status::invalid_argument("the key is no header value"))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    Ok(request)
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
fn failed(url: &str, status: &Status) -> Failed {
    let after = status.metadata().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
    let message = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Failed::Later(message, Duration::from_secs(after.unwrap_or(0))),
        _ => Failed::refused(url, message),
    }
}

/// A transport error says little without those below it.
fn reasons(error: &dyn std::error::Error) -> String {
    let below = std::iter::successors(error.source(), |error| error.source());
    below.fold(error.to_string(), |all, next| format!("{all}: {next}"))
}
