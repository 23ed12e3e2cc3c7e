//! From the wire's request to trajectories, and from scores back to its answer. Every front goes through here.
//!
//! - [`invalid`]: what can be wrong with a request, and with which field.
//! - [`options`]: the request's choices, checked against the model.
//! - [`trajectories`]: inputs tokenised and checked. [`text`]: text to ids.
//! - [`spans`]: rewards for a policy with another tokenizer.
//! - [`answer`]: scores shaped for the wire.

pub(crate) mod answer;
pub(crate) mod invalid;
mod options;
mod spans;
pub(crate) mod text;
mod trajectories;

use qrm_model::RewardModel;
use qrm_proto::RewardsRequest;

pub(crate) use invalid::Invalid;
pub(crate) use options::Options;
pub(crate) use trajectories::Prepared;

/// What one request may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) trajectories: usize,
    /// Prompts and responses.
    pub(crate) tokens: usize,
}

/// Checks and tokenises a whole request; nothing of an invalid one is queued. Holds the CPU: not for async threads.
pub(crate) fn prepare(
    request: RewardsRequest,
    model: &RewardModel,
    bounds: Bounds,
) -> Result<Prepared, Invalid> {
    let options = Options::read(&request, model)?;
    trajectories::prepare(request.inputs, options, model, bounds)
}
