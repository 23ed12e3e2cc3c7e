//! What a request turns out to be on its way in, for its count.

use std::sync::{Arc, OnceLock};

use axum::http::StatusCode;

/// Goes with the request; written once each by what finds it out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Found>);

#[derive(Debug, Default)]
struct Found {
    key: OnceLock<Arc<str>>,
    model: OnceLock<Arc<str>>,
    failure: OnceLock<StatusCode>,
}

impl Seen {
    /// Whose key it has.
    pub(crate) fn has_key(&self, name: &Arc<str>) {
        let _ = self.0.key.set(name.clone());
    }

    /// Which model it is for; one that is served.
    pub(crate) fn is_for(&self, model: &Arc<str>) {
        let _ = self.0.model.set(model.clone());
    }

    /// What it failed with once its answer had begun.
    pub(crate) fn has_failed(&self, status: StatusCode) {
        let _ = self.0.failure.set(status);
    }

    /// The status of that.
    pub(crate) fn failure(&self) -> Option<StatusCode> {
        self.0.failure.get().copied()
    }

    /// Name of the key; empty without one.
    pub(crate) fn key(&self) -> &str {
        self.0.key.get().map_or("", |name| name)
    }

    /// Name of the model; empty where it has come to none.
    pub(crate) fn model(&self) -> &str {
        self.0.model.get().map_or("", |name| name)
    }
}
