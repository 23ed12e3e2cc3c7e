//! The one error shape of every route.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"error": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// The family: `invalid_request_error`, `authentication_error`, `overloaded_error`, `timeout_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The exact case, for programs: `response_empty`, `queue_full`, …
    pub code: String,
    /// For people.
    pub message: String,
    /// The request's field at fault (`inputs[3].response`), where there is one.
    pub param: Option<String>,
}
