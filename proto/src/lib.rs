//! The wire contract of the token-reward service, as types and nothing else.
//!
//! # Layout
//!
//! - [`request`]: `POST /v1/rewards`, what comes in. Unknown fields are errors.
//! - [`response`]: what goes out, float arrays as numbers or base64.
//! - [`tokenize`]: `POST /tokenize` and `/detokenize`.
//! - [`error`]: the one error shape of every route.
#![forbid(unsafe_code)]

pub mod error;
pub mod request;
pub mod response;
pub mod tokenize;

pub use error::{ErrorBody, ErrorDetail};
pub use request::{EncodingFormat, Input, RewardsRequest, TextOrIds};
pub use response::{Datum, Floats, RewardsResponse, Timing, Usage};
