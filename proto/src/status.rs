//! `GET /health /ready /info /v1/models` and `POST /admin/reload`: what the service says of itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /health` and `/ready`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Health {
    /// `ok`; `ready`.
    pub status: &'static str,
}

/// `GET /info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Info {
    /// Of the server.
    pub version: &'static str,
    /// The first one's facts, at the top too.
    #[serde(flatten)]
    pub first: ModelFacts,
    /// The first is where requests go that name none.
    pub models: Vec<ModelFacts>,
    /// What is taken.
    pub limits: Limits,
}

/// What a served model is.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ModelFacts {
    /// Its name in requests.
    pub model: String,
    /// Of the checkpoint's content.
    pub model_version: String,
    /// `LlamaForCausalLM`, `Qwen2ForCausalLM`, …
    pub architecture: String,
    /// `q_vocab`, `q_scalar`, `outcome`, `step`, `dpo`.
    pub head: String,
    /// What it was trained for: the default of requests.
    pub reward: String,
    /// Weights.
    pub parameters: usize,
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Most tokens of a prompt and its response.
    pub context_length: usize,
    /// That weights are held in, as it was asked for.
    pub dtype: String,
    /// Where it runs.
    pub device: String,
}

/// What the server takes.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Limits {
    /// What a batch may cost, in tokens through the linear layers.
    pub max_batch_tokens: usize,
    /// Tokens that may wait.
    pub max_queue_tokens: usize,
    /// Requests that may wait.
    pub max_queue_requests: usize,
    /// Trajectories of one request.
    pub max_inputs: usize,
    /// Bytes of one body.
    pub max_body_bytes: usize,
}

/// `GET /v1/models`, in OpenAI's shape.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The first is where requests go that name none.
    pub data: Vec<ModelEntry>,
}

/// A served model's name.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelEntry {
    /// In requests.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Always `qrm`.
    pub owned_by: &'static str,
}

/// `POST /admin/reload`; `{}` reads the first model's checkpoint again.
#[derive(Debug, Default, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Name of a served model; the first.
    pub model: Option<String>,
    /// Directory or hub id; the one the model was started with.
    pub source: Option<String>,
}

/// Requests go to the new weights now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReloadResponse {
    /// Which model it was.
    pub model: String,
    /// Of the new weights.
    pub model_version: String,
    /// Of the old ones.
    pub previous_version: String,
    /// What it took.
    pub seconds: f64,
}
