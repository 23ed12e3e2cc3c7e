//! What is wrong with a request, and with which field of it.

use qrm_model::TextError;

/// A request that cannot be served as it is. Maps to 404, 413 or 422 over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Invalid {
    /// The family of statuses.
    pub(crate) kind: InvalidKind,
    /// The exact case, for programs.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) message: String,
    /// The field at fault.
    pub(crate) param: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidKind {
    /// A model that is not served.
    NotFound,
    /// More than the server takes at once.
    TooLarge,
    /// Anything else.
    Unprocessable,
}

impl Invalid {
    /// A field that says something it may not.
    pub(crate) fn field(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind: InvalidKind::Unprocessable, code, message: message.into(), param: Some(param.into()) }
    }

    /// A text or messages that cannot become token ids.
    pub(crate) fn text(error: &TextError, param: &str) -> Self {
        let code = match error {
            TextError::Template(_) => "chat_template_error",
            TextError::Missing(_) => "not_available",
            _ => "tokenizer_error",
        };
        Self::field(param, code, error.to_string())
    }

    pub(crate) fn not_found(message: String) -> Self {
        Self { kind: InvalidKind::NotFound, code: "model_not_found", message, param: Some("model".into()) }
    }

    pub(crate) fn too_many(count: usize, max_inputs: usize, param: &str) -> Self {
        Self::too_large(format!("{count} trajectories, at most {max_inputs} are taken"), param)
    }

    pub(crate) fn too_large(message: String, param: &str) -> Self {
        Self { kind: InvalidKind::TooLarge, code: "request_too_large", message, param: Some(param.into()) }
    }
}
