//! TRL's teacher server: `POST /get_sequence_logprobs/`, log φ of the tokens that were taken.
//!
//! The server gives no other tokens' probabilities: K is 1, whatever `top_logprobs` asks for. The shapes are those of
//! `trl vllm-serve` 1.1: nested lists, or base64 of `[B, T_max, 1]` arrays, padded as there.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use qrm_proto::{Datum, Input, RewardsRequest, RewardsResponse, TextOrIds};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::json::{Body, JsonBody};
use crate::api::openapi::Refusals;
use crate::api::{App, scoring};
use crate::request::Invalid;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Sequences {
    sequences: Vec<Vec<u32>>,
    prompt_lengths: Vec<usize>,
    temperature: Option<f64>,
    #[serde(default)]
    response_format: Format,
}

impl Body for Sequences {
    const LIST: Option<&'static str> = Some("sequences");
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Binary,
}

#[utoipa::path(
    post, path = "/get_sequence_logprobs/", tag = "dialects", summary = "TRL: log φ of every response token",
    request_body = Sequences,
    responses((status = 200, description = "As lists, or as base64", body = Logprobs), Refusals)
)]
pub(crate) async fn get_sequence_logprobs(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    JsonBody(request, held): JsonBody<Sequences>,
) -> Result<Response, ApiError> {
    let format = request.response_format;
    let request = RewardsRequest {
        inputs: inputs(request)?,
        reward: Some("advantage".into()),
        include: vec!["token_ids".into()],
        ..RewardsRequest::default()
    };
    let read = scoring::read(&app, client, request, &held).await;
    let read = read.map_err(|e| e.of_list("sequences"))?;
    let answer = read.answer(&app, move |answer| match format {
        Format::Json => Json(lists(&answer)).into_response(),
        Format::Binary => Json(arrays(&answer)).into_response(),
    });
    Ok(held.stays_with(answer.await.map_err(|e| e.of_list("sequences"))?))
}

pub(crate) fn inputs(request: Sequences) -> Result<Vec<Input>, Invalid> {
    let Sequences { sequences, prompt_lengths, temperature, .. } = request;
    if temperature.is_some_and(|t| t != 1.0) {
        let message = "log φ is at temperature 1";
        return Err(Invalid::field("temperature", "not_available", message));
    }
    if sequences.len() != prompt_lengths.len() {
        let message = format!("{} sequences and {} lengths", sequences.len(), prompt_lengths.len());
        return Err(Invalid::field("prompt_lengths", "wrong_length", message));
    }
    let one = |(i, (ids, prompt)): (usize, (Vec<u32>, usize))| {
        let Some((prompt, response)) = ids.split_at_checked(prompt) else {
            let message = format!("{prompt} of {} tokens", ids.len());
            return Err(Invalid::field(format!("prompt_lengths[{i}]"), "out_of_range", message));
        };
        Ok(Input {
            prompt: Some(TextOrIds::Ids(prompt.to_vec())),
            response: Some(TextOrIds::Ids(response.to_vec())),
            ..Input::default()
        })
    };
    sequences.into_iter().zip(prompt_lengths).enumerate().map(one).collect()
}

/// As it was asked for.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Logprobs {
    /// `[B][T][1]` each.
    Lists { logprobs: Vec<Vec<[f32; 1]>>, logprob_token_ids: Vec<Vec<[u32; 1]>> },
    /// float32 and int32, little-endian, rows padded with −inf and 0.
    Arrays {
        logprobs_b64: String,
        token_ids_b64: String,
        actual_logprobs_b64: String,
        actual_token_ids_b64: String,
        /// B, T_max, 1
        shape: [usize; 3],
        completion_lengths: Vec<usize>,
    },
}

fn lists(answer: &RewardsResponse) -> Logprobs {
    let logprobs = |d: &Datum| d.rewards.values().iter().map(|v| [*v]).collect();
    let ids = |d: &Datum| d.token_ids.iter().flatten().map(|id| [*id]).collect();
    Logprobs::Lists {
        logprobs: answer.data.iter().map(logprobs).collect(),
        logprob_token_ids: answer.data.iter().map(ids).collect(),
    }
}

fn arrays(answer: &RewardsResponse) -> Logprobs {
    let completion_lengths: Vec<usize> = answer.data.iter().map(|d| d.length).collect();
    let longest = completion_lengths.iter().copied().max().unwrap_or(0);
    let (mut logprobs, mut token_ids) = (Vec::new(), Vec::new());
    for datum in &answer.data {
        let values = datum.rewards.values().iter().copied().chain(std::iter::repeat(f32::NEG_INFINITY));
        logprobs.extend(values.take(longest).flat_map(f32::to_le_bytes));
        let ids = datum.token_ids.iter().flatten().map(|id| *id as i32).chain(std::iter::repeat(0));
        token_ids.extend(ids.take(longest).flat_map(i32::to_le_bytes));
    }
    let (logprobs, token_ids) = (BASE64_STANDARD.encode(logprobs), BASE64_STANDARD.encode(token_ids));
    Logprobs::Arrays {
        actual_logprobs_b64: logprobs.clone(),
        actual_token_ids_b64: token_ids.clone(),
        logprobs_b64: logprobs,
        token_ids_b64: token_ids,
        shape: [completion_lengths.len(), longest, 1],
        completion_lengths,
    }
}
