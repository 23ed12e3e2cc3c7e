//! `POST /v1/rewards`: the request.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Array, Object, OneOf, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Trajectories to score, and how.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardsRequest {
    /// Must name a served model when present.
    pub model: Option<String>,
    /// At least one.
    #[schema(min_items = 1)]
    pub inputs: Vec<Input>,
    /// `advantage`, `logit`, `centered_logit`, `outcome`, …; absent: what the model was trained for.
    #[schema(value_type = Option<RewardName>)]
    pub reward: Option<String>,
    /// Multiplies every reward, after normalisation.
    pub scale: Option<f64>,
    /// `none`, `std` or `standard`, over all response tokens of this request.
    #[schema(value_type = Option<NormalizeName>)]
    pub normalize: Option<String>,
    /// Appends the checkpoint's end-of-sequence token to every response.
    #[serde(default)]
    pub append_eos: bool,
    /// Drops prompt tokens from the left until the trajectory fits the context.
    #[serde(default)]
    pub truncate_prompt: bool,
    /// How the rewards of a span's tokens become one: `sum`, `mean` or `last`.
    #[schema(value_type = Option<SpanReduceName>)]
    pub span_reduce: Option<String>,
    /// Extra fields per trajectory.
    #[schema(value_type = Vec<IncludeName>)]
    #[serde(default)]
    pub include: Vec<String>,
    /// How float arrays are written.
    #[serde(default)]
    pub encoding_format: EncodingFormat,
    /// Higher is served first.
    #[serde(default)]
    pub priority: i32,
    /// From arrival to answer.
    #[schema(minimum = 1, format = "uint64")]
    pub timeout_ms: Option<u64>,
}

/// The values of [`RewardsRequest::reward`].
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema only")]
enum RewardName {
    Advantage,
    Logit,
    CenteredLogit,
    Outcome,
    Step,
    Dpo,
}

/// The values of [`RewardsRequest::normalize`].
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema only")]
enum NormalizeName {
    None,
    Std,
    Standard,
}

/// The values of [`RewardsRequest::span_reduce`].
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema only")]
enum SpanReduceName {
    Sum,
    Mean,
    Last,
}

/// The values of [`RewardsRequest::include`].
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema only")]
enum IncludeName {
    TokenIds,
    Tokens,
    Offsets,
    Logit,
    Logsumexp,
    Max,
    Entropy,
}

/// One prompt with its response or responses.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Echoed; a string or a number.
    #[serde(default, deserialize_with = "string_or_number")]
    #[schema(value_type = Option<StringOrNumber>)]
    pub id: Option<Value>,
    /// Text or token ids; or else `messages`.
    pub prompt: Option<TextOrIds>,
    /// Goes through the chat template with a generation prompt.
    pub messages: Option<Vec<ChatMessage>>,
    /// One response.
    pub response: Option<TextOrIds>,
    /// A group of responses that share the prompt.
    #[schema(min_items = 1)]
    pub responses: Option<Vec<TextOrIds>>,
    /// The policy's tokens as byte ranges of the response text, one after the other from its begin to its end: one reward
    /// for each of them.
    pub spans: Option<Vec<[usize; 2]>>,
    /// Where the steps of the response end, for the reward `step`, instead of at the checkpoint's separator: bytes of a text,
    /// tokens of ids, ascending.
    pub step_ends: Option<Vec<usize>>,
    /// Lets the tokenizer add its special tokens to a text prompt.
    #[serde(default)]
    pub add_special_tokens: bool,
}

impl Input {
    /// Whether anything in it has to be tokenised.
    pub fn has_text(&self) -> bool {
        let is_text = |part: &TextOrIds| matches!(part, TextOrIds::Text(_));
        let responses = self.response.iter().chain(self.responses.iter().flatten());
        self.messages.is_some() || self.prompt.iter().chain(responses).any(is_text)
    }
}

/// One chat message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// Its text.
    pub content: String,
}

/// How float arrays are written in the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// JSON numbers.
    #[default]
    Float,
    /// A base64 string of little-endian f32.
    Base64,
}

/// Text, or token ids of the reward model's own tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextOrIds {
    /// Tokenised by the server.
    Text(String),
    /// Taken as they are.
    Ids(Vec<u32>),
}

impl PartialSchema for TextOrIds {
    fn schema() -> RefOr<Schema> {
        let text = Object::builder().schema_type(Type::String).min_length(Some(1));
        let id = Object::builder().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
        let ids = Array::builder().items(id).min_items(Some(1));
        let either = OneOf::builder().item(text).item(ids);
        either.description(Some("Text, or token ids of the reward model's own tokenizer.")).into()
    }
}

impl ToSchema for TextOrIds {}

/// An `id` as it may be.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema only")]
pub(crate) enum StringOrNumber {
    String(String),
    Number(f64),
}

/// Nothing else is kept: a list of numbers takes sixteen times its bytes as a [`Value`].
fn string_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    struct StringOrNumberVisitor;
    impl Visitor<'_> for StringOrNumberVisitor {
        type Value = Option<Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a number")
        }

        fn visit_unit<E>(self) -> Result<Option<Value>, E> {
            Ok(None)
        }

        fn visit_str<E>(self, text: &str) -> Result<Option<Value>, E> {
            Ok(Some(text.into()))
        }

        fn visit_u64<E>(self, number: u64) -> Result<Option<Value>, E> {
            Ok(Some(number.into()))
        }

        fn visit_i64<E>(self, number: i64) -> Result<Option<Value>, E> {
            Ok(Some(number.into()))
        }

        fn visit_f64<E>(self, number: f64) -> Result<Option<Value>, E> {
            Ok(Some(number.into()))
        }
    }
    deserializer.deserialize_any(StringOrNumberVisitor)
}

/// By hand, because an untagged enum's error says neither what was expected nor where.
impl<'de> Deserialize<'de> for TextOrIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrIdsVisitor;
        impl<'de> Visitor<'de> for TextOrIdsVisitor {
            type Value = TextOrIds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<TextOrIds, E> {
                Ok(TextOrIds::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<TextOrIds, E> {
                Ok(TextOrIds::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextOrIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(TextOrIds::Ids(ids))
            }
        }
        deserializer.deserialize_any(TextOrIdsVisitor)
    }
}
