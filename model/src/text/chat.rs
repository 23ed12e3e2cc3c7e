//! The chat template, as Hugging Face runs it: Jinja with Python's methods and a few helpers.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, context};

use super::clock::strftime_now;
use super::config::{SPECIAL_TOKENS, TokenizerConfig};
use super::json::tojson;
use super::{Message, TextError};

const NAME: &str = "chat_template";

/// Steps a template may take: a thousand messages, each compared with all the others, stay below it, and a loop that
/// means no end is stopped within a second or so.
const FUEL: u64 = 20_000_000;

/// A compiled template, or why it is not one: a checkpoint whose template is broken still scores ids and text.
pub(super) struct ChatTemplate {
    /// Holds the template and the special tokens as globals.
    env: Result<Environment<'static>, String>,
}

impl ChatTemplate {
    /// Compiles `source`.
    pub(super) fn new(source: &str, config: &TokenizerConfig) -> Self {
        let mut env = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        match syntax.build() {
            Ok(syntax) => env.set_syntax(syntax),
            Err(e) => return Self { env: Err(e.to_string()) },
        }
        env.set_fuel(Some(FUEL));
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_formatter(print);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_filter("tojson", tojson);
        for name in SPECIAL_TOKENS {
            if let Some(token) = config.special(name) {
                env.add_global(name, token);
            }
        }
        let added = env.add_template_owned(NAME, without_generation_tags(source));
        Self { env: added.map(|()| env).map_err(|e| e.to_string()) }
    }

    /// The conversation as text; with a generation prompt up to where the assistant is to speak.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let env = self.env.as_ref().map_err(|e| TextError::Template(e.clone()))?;
        let messages: Vec<Value> = messages.iter().cloned().map(Value::from_object).collect();
        env.get_template(NAME)
            .and_then(|template| {
                template.render(context! {
                    messages,
                    add_generation_prompt,
                    // Templates ask whether these are none rather than whether they are defined.
                    tools => Value::from(()),
                    documents => Value::from(()),
                })
            })
            .map_err(|e| TextError::Template(e.detail().map_or_else(|| e.to_string(), str::to_owned)))
    }
}

/// A message is a dictionary with its keys in the order of the wire, which `tojson` and `items()` show.
impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(&self.role)),
            "content" => Some(Value::from(&self.content)),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// What `{{ … }}` writes, with Python's names for its constants.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// How a template refuses a conversation.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `{% generation %}` marks the assistant's own text for training masks and prints nothing. A condition that always
/// holds stands in for it, as it treats the whitespace around it in the same way.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        out += before;
        rest = tag;
        let Some(close) = tag.find("%}") else { break };
        let word = tag[..close].trim_matches(['-', '+']).trim();
        let stand_in = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out += &tag[..close].replacen(word, stand_in, 1);
        rest = &tag[close..];
    }
    out + rest
}
