//! `POST /tokenize` and `POST /detokenize`, in the shape vLLM gave them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::request::ChatMessage;

/// Text or messages to tokenise as the scoring routes would.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// Must name a served model when present.
    pub model: Option<String>,
    /// Text; or else `messages`.
    pub prompt: Option<String>,
    /// Through the chat template with a generation prompt.
    pub messages: Option<Vec<ChatMessage>>,
    /// Lets the tokenizer add its special tokens.
    #[serde(default)]
    pub add_special_tokens: bool,
}

/// Token ids with their strings and byte ranges.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// `[n]`.
    pub tokens: Vec<u32>,
    /// `[n]` vocabulary strings.
    pub token_strs: Vec<String>,
    /// `[n]` byte ranges of the text (of the rendered template, for messages).
    pub offsets: Vec<[usize; 2]>,
    /// n.
    pub count: usize,
    /// The model's context.
    pub max_model_len: usize,
}

/// Token ids to turn back into text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// Must name a served model when present.
    pub model: Option<String>,
    /// `[n]`.
    pub tokens: Vec<u32>,
    /// Leaves special tokens out of the text.
    #[serde(default)]
    pub skip_special_tokens: bool,
}

/// The text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// Text of the tokens.
    pub prompt: String,
}
