//! `tokenizer_config.json` and the chat template beside it, in the several layouts checkpoints use.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use super::TextError;

/// The special tokens a chat template may name.
pub(super) const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The parts of the tokenizer's configuration that scoring needs.
pub(super) struct TokenizerConfig {
    /// `tokenizer_config.json` as it is; empty where the file is absent.
    fields: Map<String, Value>,
    /// Source of the chat template, wherever it was found.
    pub(super) chat_template: Option<String>,
}

impl TokenizerConfig {
    /// A template file of its own wins over one in the configuration, as in transformers.
    pub(super) fn load(dir: &Path) -> Result<Self, TextError> {
        let fields = read_object(dir, "tokenizer_config.json")?;
        let chat_template = match read(dir, "chat_template.jinja")? {
            Some(template) => Some(template),
            None => match default_template(fields.get("chat_template")) {
                Some(template) => Some(template),
                None => default_template(read_object(dir, "chat_template.json")?.get("chat_template")),
            },
        };
        Ok(Self { fields, chat_template })
    }

    /// What `transformers` puts around a text instead of what `tokenizer.json` says: of Llama's class of tokenizers, where the
    /// configuration says so.
    pub(super) fn surround(&self) -> Option<[Option<&str>; 2]> {
        let class = self.fields.get("tokenizer_class").and_then(Value::as_str);
        let flag = |name: &str| self.fields.get(name).and_then(Value::as_bool);
        let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
        if !matches!(class, Some("LlamaTokenizer" | "LlamaTokenizerFast")) || (bos, eos) == (None, None) {
            return None;
        }
        let named = |token: &str, wanted: bool| self.special(token).filter(|_| wanted);
        Some([named("bos_token", bos.unwrap_or(true)), named("eos_token", eos.unwrap_or(false))])
    }

    /// The text of a special token, written as a string or as an object with its `content`.
    pub(super) fn special(&self, name: &str) -> Option<&str> {
        match self.fields.get(name)? {
            Value::String(token) => Some(token),
            token => token.get("content")?.as_str(),
        }
    }
}

/// One template, or the `default` of several named ones.
fn default_template(field: Option<&Value>) -> Option<String> {
    let template = match field? {
        Value::Array(named) => named.iter().find(|t| t["name"] == "default")?.get("template")?,
        template => template,
    };
    template.as_str().map(str::to_owned)
}

/// A JSON object; empty where the file is absent.
fn read_object(dir: &Path, file: &'static str) -> Result<Map<String, Value>, TextError> {
    match read(dir, file)? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| TextError::File { file, message: e.to_string() })
        }
        None => Ok(Map::new()),
    }
}

/// A text file; none where it is absent.
pub(super) fn read(dir: &Path, file: &'static str) -> Result<Option<String>, TextError> {
    match std::fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TextError::File { file, message: e.to_string() }),
    }
}
