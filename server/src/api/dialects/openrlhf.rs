//! OpenRLHF's `--reward.remote_url`: `POST /get_reward`, one query a request.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_proto::{Input, RewardsRequest, RewardsResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{sequence_score, text_input};
use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::json::{Body, JsonBody};
use crate::api::openapi::Refusals;
use crate::api::{App, scoring};
use crate::request::Invalid;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Query {
    /// Prompts with their responses, special tokens written out.
    query: Vec<String>,
    /// What each begins with.
    #[serde(default)]
    prompts: Vec<String>,
}

impl Body for Query {
    const LIST: Option<&'static str> = Some("query");
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct Answer {
    rewards: Vec<f32>,
    scores: Vec<f32>,
    extra_logs: Map<String, Value>,
    token_rewards: Vec<qrm_proto::Floats>,
}

/// Of several URLs all but the first are sent empty lists, and answer them.
#[utoipa::path(
    post, path = "/get_reward", tag = "dialects", summary = "OpenRLHF: scores of whole answers, and token rewards",
    request_body = Query,
    responses((status = 200, description = "Scores, in the order of the request", body = Answer), Refusals)
)]
pub(crate) async fn get_reward(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    JsonBody(request, held): JsonBody<Query>,
) -> Result<Response, ApiError> {
    if request.query.is_empty() {
        return Ok(Json(Answer::default()).into_response());
    }
    let request = RewardsRequest { inputs: inputs(request)?, ..RewardsRequest::default() };
    let read = scoring::read(&app, client, request, &held).await;
    let read = read.map_err(|e| e.of_list("query"))?;
    let answer = read.answer(&app, |answer| Json(Answer::of(answer)).into_response()).await;
    Ok(held.stays_with(answer.map_err(|e| e.of_list("query"))?))
}

/// The response is what follows the prompt.
pub(crate) fn inputs(Query { query, prompts }: Query) -> Result<Vec<Input>, Invalid> {
    if query.len() != prompts.len() {
        let message = format!("{} queries and {} prompts", query.len(), prompts.len());
        return Err(Invalid::field("prompts", "wrong_length", message));
    }
    let one = |(i, (query, prompt)): (usize, (String, String))| {
        let Some(response) = query.strip_prefix(prompt.as_str()) else {
            let message = format!("query[{i}] does not begin with prompts[{i}]");
            return Err(Invalid::field(format!("query[{i}]"), "prompt_not_found", message));
        };
        let response = response.to_owned();
        Ok(text_input(prompt, response))
    };
    query.into_iter().zip(prompts).enumerate().map(one).collect()
}

impl Answer {
    fn of(answer: RewardsResponse) -> Self {
        let scores: Vec<f32> = answer.data.iter().map(|d| sequence_score(answer.reward, d)).collect();
        let lengths: Vec<usize> = answer.data.iter().map(|d| d.length).collect();
        let mut extra_logs = Map::new();
        extra_logs.insert("response_tokens".into(), json!(lengths));
        Self {
            rewards: scores.clone(),
            scores,
            extra_logs,
            token_rewards: answer.data.into_iter().map(|d| d.rewards).collect(),
        }
    }
}
