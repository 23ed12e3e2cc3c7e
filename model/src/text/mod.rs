//! Tokenizer and chat template of a checkpoint: text and messages in, token ids and byte offsets out.
//!
//! - `tokenizer`: ids and offsets of text, over the `tokenizers` crate.
//! - `offsets`: the crate's ranges made exact, down to the byte.
//! - `chat`: the chat template, as Hugging Face runs it.
//! - `json`, `clock`: the `tojson` and `strftime_now` that templates call.
//! - `config`: what `tokenizer_config.json` says.

mod chat;
mod clock;
mod config;
mod json;
mod offsets;
mod tokenizer;

use std::path::Path;

use serde::{Deserialize, Serialize};

use chat::ChatTemplate;
use config::TokenizerConfig;
use tokenizer::TextTokenizer;

/// Why text could not become token ids.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The checkpoint has no such file.
    #[error("the checkpoint has no {0}")]
    Missing(&'static str),
    /// A file is broken.
    #[error("{file}: {message}")]
    File {
        /// Which.
        file: &'static str,
        /// Why.
        message: String,
    },
    /// The chat template refused the messages (`raise_exception`, or an error in it).
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenize(String),
}

/// One chat message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Token ids with the byte range of each in the text. A token that holds part of a multi-byte character
/// gets that character's bytes it covers when known, else the whole character's range.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// `[n]`.
    pub ids: Vec<u32>,
    /// `[n]` half-open byte ranges.
    pub offsets: Vec<[usize; 2]>,
}

/// Tokenizer plus chat template. Cheap to share, no interior locks held across calls.
pub struct TextProcessor {
    /// `tokenizer.json`.
    tokenizer: TextTokenizer,
    /// Absent where the checkpoint ships none: only `render` needs it.
    chat: Option<ChatTemplate>,
    /// Resolved once, as it is asked for per request.
    eos: Option<u32>,
}

impl TextProcessor {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` from a checkpoint directory.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let config = TokenizerConfig::load(dir)?;
        let mut tokenizer = TextTokenizer::load(dir)?;
        if let Some([begin, end]) = config.surround() {
            tokenizer.surround(begin, end)?;
        }
        let eos = config.special("eos_token").and_then(|token| tokenizer.id(token));
        Ok(Self {
            tokenizer,
            chat: config.chat_template.as_deref().map(|t| ChatTemplate::new(t, &config)),
            eos,
        })
    }

    /// Ids and byte offsets of `text` as it is: special tokens in it recognised; none added unless `add_special_tokens`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, TextError> {
        self.tokenizer.encode(text, add_special_tokens)
    }

    /// Messages through the chat template with a generation prompt, as text.
    pub fn render(&self, messages: &[Message]) -> Result<String, TextError> {
        self.chat()?.render(messages, true)
    }

    /// A conversation through the chat template, as text: nobody is to speak next.
    pub fn render_whole(&self, messages: &[Message]) -> Result<String, TextError> {
        self.chat()?.render(messages, false)
    }

    fn chat(&self) -> Result<&ChatTemplate, TextError> {
        self.chat.as_ref().ok_or(TextError::Missing("chat template"))
    }

    /// Text of `ids`, special tokens kept unless `skip_special_tokens`. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }

    /// The bytes of text that an id stands for amid others: with the space before a word, and part of a character where
    /// it is that. Decoding it alone would lose both.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.bytes(id)
    }

    /// Bytes that no token stands for more of.
    pub fn longest_token(&self) -> usize {
        self.tokenizer.longest()
    }

    /// The vocabulary's own string for an id (`Ġthe`), if it has one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.token(id)
    }

    /// The id of the tokenizer_config's `eos_token`.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos
    }
}
