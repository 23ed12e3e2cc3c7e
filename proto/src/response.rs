//! `POST /v1/rewards`: the answer.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Array, Object, OneOf, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::request::EncodingFormat;

/// All trajectories of a request, in its order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RewardsResponse {
    /// Always `list`.
    pub object: &'static str,
    /// The model that scored.
    pub model: String,
    /// Of its checkpoint's content; another after a reload.
    pub model_version: String,
    /// The reward's name.
    pub reward: &'static str,
    /// One per trajectory; none in the line that closes an answer in parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<Datum>,
    /// Of the rewards over all response tokens, before `normalize` and `scale`: what `normalize` uses.
    pub stats: Stats,
    /// Tokens.
    pub usage: Usage,
    /// Milliseconds.
    pub timing: Timing,
}

/// One scored trajectory.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Datum {
    /// Place in `data`.
    pub index: usize,
    /// Place of its input in the request.
    pub input: usize,
    /// The input's `id`.
    #[schema(value_type = Option<crate::request::StringOrNumber>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// `[T]`, all finite; one per span where there are spans.
    pub rewards: Floats,
    /// Mean of `rewards`.
    pub score: f32,
    /// Sum of `rewards`.
    pub sum: f32,
    /// Of `rewards`.
    pub length: usize,
    /// `[T]` response token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// `[T]` vocabulary strings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<String>>,
    /// `[T]` byte ranges of the response text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<[usize; 2]>>,
    /// `[T]` `Z(s_t,a_t)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit: Option<Floats>,
    /// `[T]` `logsumexp_a Z(s_t,a)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logsumexp: Option<Floats>,
    /// `[T]` `max_a Z(s_t,a)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Floats>,
    /// `[T]` entropy of φ(·|s_t), nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Floats>,
}

/// Count, mean and population standard deviation.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Stats {
    /// Response tokens.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
}

/// Tokens: prompt + response = computed + cached.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Σ P over trajectories.
    pub prompt_tokens: usize,
    /// Σ T.
    pub response_tokens: usize,
    /// Tokens the decoder ran for this request.
    pub computed_tokens: usize,
    /// Tokens whose computation another trajectory had already paid for.
    pub cached_tokens: usize,
}

/// Where the request's time went, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Timing {
    /// Tokenising and validating.
    pub tokenize_ms: f64,
    /// From acceptance to its first batch.
    pub queue_ms: f64,
    /// Batches it was part of.
    pub compute_ms: f64,
}

/// A float array as the request asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Floats {
    values: Vec<f32>,
    format: EncodingFormat,
}

impl Floats {
    /// `values`, to be written as `format`.
    pub fn new(values: Vec<f32>, format: EncodingFormat) -> Self {
        Self { values, format }
    }

    /// The numbers themselves.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// The numbers.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl PartialSchema for Floats {
    fn schema() -> RefOr<Schema> {
        let numbers = Array::builder().items(Object::builder().schema_type(Type::Number));
        let base64 = Object::builder().schema_type(Type::String);
        let either = OneOf::builder().item(numbers).item(base64);
        either
            .description(Some("Numbers, or with `encoding_format: base64` the base64 of little-endian f32."))
            .into()
    }
}

impl ToSchema for Floats {}

impl Serialize for Floats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.format {
            EncodingFormat::Float => self.values.serialize(serializer),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
            }
        }
    }
}
