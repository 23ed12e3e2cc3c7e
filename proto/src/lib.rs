//! The wire contract of the token-reward service, as types, and how gRPC's are decoded within bounds.
//!
//! # Layout
//!
//! - [`request`]: `POST /v1/rewards`, what comes in. Unknown fields are errors.
//! - [`response`]: what goes out, float arrays as numbers or base64.
//! - [`status`]: what the service says of itself.
//! - [`tokenize`]: `POST /tokenize` and `/detokenize`.
//! - [`error`]: the one error shape of every route.
//! - [`v1`]: the gRPC service. [`codec`]: its messages, bounded.
#![forbid(unsafe_code)]

pub mod codec;
pub mod error;
pub mod request;
pub mod response;
pub mod status;
pub mod tokenize;
pub mod v1;

pub use error::{ErrorBody, ErrorDetail};
pub use request::{EncodingFormat, Input, RewardsRequest, TextOrIds};
pub use response::{Datum, Floats, RewardsResponse, Timing, Usage};
