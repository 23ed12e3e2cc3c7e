//! Refusals as gRPC statuses; what they are in more detail is in the metadata.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::api::error::ApiError;

/// `ResourceExhausted` and `Unavailable` are worth another try, later; the others are not.
pub(super) fn code(error: &ApiError) -> Code {
    match error.status().as_u16() {
        401 => Code::Unauthenticated,
        404 => Code::NotFound,
        408 | 504 => Code::DeadlineExceeded,
        429 => Code::ResourceExhausted,
        503 if error.code() == "queue_full" => Code::ResourceExhausted,
        503 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut metadata = MetadataMap::new();
        let mut note = |name: &'static str, value: &str| {
            // A field's name that a header cannot hold stays in the message.
            if let Ok(value) = MetadataValue::<Ascii>::try_from(value) {
                metadata.insert(name, value);
            }
        };
        note("qrm-code", error.code());
        if let Some(param) = error.param() {
            note("qrm-param", param);
        }
        if let Some(seconds) = error.retry_after() {
            note("retry-after", &seconds.to_string());
        }
        Self::with_metadata(code(&error), error.message(), metadata)
    }
}
