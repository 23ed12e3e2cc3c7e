//! slime's `--rm-url`: `POST /rm`, one sample a request.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_proto::{Floats, Input, RewardsRequest, RewardsResponse, TextOrIds};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{Turn, sequence_score};
use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::json::{Body, JsonBody};
use crate::api::openapi::Refusals;
use crate::api::{App, scoring};

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Sample {
    prompt: Prompt,
    response: String,
}

impl Body for Sample {}

/// `Serialize` for the schema, which has the form from it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<Turn>),
}

/// As it comes: serde's own would keep all of it in between, whatever it is.
impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or messages")
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Prompt, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Prompt::Messages)
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

#[utoipa::path(
    post, path = "/rm", tag = "dialects", summary = "slime: one sample",
    request_body = Sample,
    responses((status = 200, description = "Its score", body = Scored), Refusals)
)]
pub(crate) async fn rm(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    JsonBody(Sample { prompt, response }, held): JsonBody<Sample>,
) -> Result<Response, ApiError> {
    let (prompt, messages) = match prompt {
        Prompt::Text(text) => (Some(TextOrIds::Text(text)), None),
        Prompt::Messages(messages) => (None, Some(messages.into_iter().map(Turn::into).collect())),
    };
    let input = Input { prompt, messages, response: Some(TextOrIds::Text(response)), ..Input::default() };
    let request =
        RewardsRequest { inputs: vec![input], include: vec!["tokens".into()], ..RewardsRequest::default() };
    let read = scoring::read(&app, client, request, &held).await.map_err(ApiError::of_the_input)?;
    let answer = read.answer(&app, |answer| Json(Scored::of(answer)).into_response()).await?;
    Ok(held.stays_with(answer))
}

/// All of it becomes the sample's reward.
#[derive(Serialize, ToSchema)]
struct Scored {
    score: f32,
    token_rewards: Floats,
    tokens: Option<Vec<String>>,
}

impl Scored {
    /// Of an answer to one sample.
    fn of(answer: RewardsResponse) -> Option<Self> {
        let datum = answer.data.into_iter().next()?;
        let score = sequence_score(answer.reward, &datum);
        Some(Self { score, token_rewards: datum.rewards, tokens: datum.tokens })
    }
}
