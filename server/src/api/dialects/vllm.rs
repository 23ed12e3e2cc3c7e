//! vLLM's pooling routes: `POST /classify`, which verl's discriminative reward model asks for one number a text, and
//! `POST /pooling`, one number a token.
//!
//! A text here is prompt and response in one. A scalar head reads all of it; a vocabulary head judges every token but the
//! first, which nothing comes before: `/pooling` gives that one 0.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use qrm_model::RewardModel;
use qrm_model::text::Message;
use qrm_proto::{EncodingFormat, Floats, Input, RewardsRequest, RewardsResponse, TextOrIds};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::one_or_more::OneOrMore;
use super::{Turn, sequence_score};
use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::intake::Held;
use crate::api::json::{Body, JsonBody};
use crate::api::openapi::Refusals;
use crate::api::{App, scoring};
use crate::request::{Invalid, text};

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Texts {
    model: Option<String>,
    input: Option<OneOrMore>,
    /// A conversation instead, through the chat template.
    messages: Option<Vec<Turn>>,
    #[serde(default = "yes")]
    add_special_tokens: bool,
    #[serde(default)]
    encoding_format: EncodingFormat,
}

impl Body for Texts {
    const LIST: Option<&'static str> = Some("input");
}

/// vLLM's tokenizers add theirs unless they are told not to.
fn yes() -> bool {
    true
}

#[utoipa::path(
    post, path = "/classify", tag = "dialects", summary = "vLLM: one number a text",
    request_body = Texts,
    responses((status = 200, description = "Scores", body = List<Class>), Refusals)
)]
pub(crate) async fn classify(
    State(app): State<Arc<App>>,
    client: Extension<Client>,
    JsonBody(request, held): JsonBody<Texts>,
) -> Result<Response, ApiError> {
    let answer = score(app, client, request, &held, |answer, _| {
        let scores = answer.data.iter().map(|d| sequence_score(answer.reward, d));
        let class = |(index, score)| Class { index, label: "LABEL_0", probs: [score], num_classes: 1 };
        list("classify", &answer, scores.enumerate().map(class).collect())
    });
    let answer = answer.await?;
    Ok(held.stays_with(answer))
}

#[utoipa::path(
    post, path = "/pooling", tag = "dialects", summary = "vLLM: one number a token of the whole input",
    request_body = Texts,
    responses((status = 200, description = "Rewards", body = List<Pooled>), Refusals)
)]
pub(crate) async fn pooling(
    State(app): State<Arc<App>>,
    client: Extension<Client>,
    JsonBody(request, held): JsonBody<Texts>,
) -> Result<Response, ApiError> {
    let format = request.encoding_format;
    let answer = score(app, client, request, &held, move |answer, unread| {
        let data = answer.data.iter().map(|datum| {
            let rewards = datum.rewards.values().iter();
            let values = std::iter::repeat_n(&0.0, unread).chain(rewards).copied();
            let data = match format {
                EncodingFormat::Float => Rows::Lists(values.map(|v| [v]).collect()),
                EncodingFormat::Base64 => Rows::Base64(Floats::new(values.collect(), format)),
            };
            Pooled { index: datum.index, object: "pooling", data }
        });
        list("pool", &answer, data.collect())
    });
    let answer = answer.await?;
    Ok(held.stays_with(answer))
}

/// Scores every text as one trajectory; `shape` also gets how many tokens at its begin have no reward.
async fn score<D: Serialize>(
    app: Arc<App>,
    Extension(client): Extension<Client>,
    request: Texts,
    held: &Held,
    shape: impl FnOnce(RewardsResponse, usize) -> List<D> + Send + 'static,
) -> Result<Response, ApiError> {
    let loaded = app.served(request.model.as_deref())?.current();
    let model = loaded.model.clone();
    let unread = model.min_prompt_tokens();
    let shared = held.clone();
    let native = move || {
        let _shared = shared;
        native(request, &model)
    };
    let request =
        scoring::within(scoring::deadline(&app, &client, None), app.turns.tokenize(native)).await???;
    let read = scoring::read_for(&app, client, request, held, loaded).await;
    let read = read.map_err(|e| e.of_list("input"))?;
    let answer = read.answer(&app, move |answer| Json(shape(answer, unread)).into_response()).await;
    answer.map_err(|e| e.of_list("input"))
}

pub(crate) fn native(request: Texts, model: &RewardModel) -> Result<RewardsRequest, Invalid> {
    let Texts { model: name, input, messages, add_special_tokens, .. } = request;
    let input = match (input, messages) {
        (Some(input), None) => input,
        (None, Some(turns)) => {
            let turns = turns.into_iter().map(|t| Message { role: t.role, content: t.content });
            let text = model.text().render_whole(&turns.collect::<Vec<_>>());
            let text = text.map_err(|e| Invalid::text(&e, "messages"))?;
            // The template writes the special tokens.
            OneOrMore::Ids(text::encode(model, &text, false, "messages")?.ids)
        }
        _ => return Err(Invalid::field("input", "missing_field", "one of input and messages is needed")),
    };
    let encode = |text: String, param: &str| {
        text::encode(model, &text, add_special_tokens, param).map(|encoded| encoded.ids)
    };
    let all = match input {
        OneOrMore::Text(text) => vec![encode(text, "input")?],
        OneOrMore::Ids(ids) => vec![ids],
        OneOrMore::Texts(texts) => {
            let encode = |(i, text)| encode(text, &format!("input[{i}]"));
            texts.into_iter().enumerate().map(encode).collect::<Result<_, _>>()?
        }
        OneOrMore::IdLists(all) => all,
    };
    let inputs = all.into_iter().enumerate().map(|(i, ids)| {
        let unread = model.min_prompt_tokens();
        match ids.split_at_checked(unread) {
            Some((prompt, response)) if !response.is_empty() => Ok(Input {
                prompt: Some(TextOrIds::Ids(prompt.to_vec())),
                response: Some(TextOrIds::Ids(response.to_vec())),
                ..Input::default()
            }),
            _ => {
                let message = format!("{} tokens, at least {} are needed", ids.len(), unread + 1);
                Err(Invalid::field(format!("input[{i}]"), "input_too_short", message))
            }
        }
    });
    let inputs = inputs.collect::<Result<_, _>>()?;
    Ok(RewardsRequest { model: name, inputs, ..RewardsRequest::default() })
}

#[derive(Serialize, ToSchema)]
struct Class {
    index: usize,
    label: &'static str,
    probs: [f32; 1],
    num_classes: usize,
}

#[derive(Serialize, ToSchema)]
struct Pooled {
    index: usize,
    object: &'static str,
    data: Rows,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Rows {
    Lists(Vec<[f32; 1]>),
    Base64(Floats),
}

/// The frame of vLLM's answers.
#[derive(Serialize, ToSchema)]
struct List<D> {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<D>,
    usage: Value,
}

fn list<D>(kind: &str, answer: &RewardsResponse, data: Vec<D>) -> List<D> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let tokens = answer.usage.prompt_tokens + answer.usage.response_tokens;
    List {
        id: format!("{kind}-{:x}", now.as_nanos()),
        object: "list",
        created: now.as_secs(),
        model: answer.model.clone(),
        data,
        usage: json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}),
    }
}
