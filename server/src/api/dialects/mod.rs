//! What RL frameworks send already, mapped onto the native request. Each is a file; fields that it does not know it ignores,
//! as its callers send extras.
//!
//! - [`openrlhf`]: `POST /get_reward`.
//! - [`slime`]: `POST /rm`.
//! - [`vllm`]: `POST /classify` and `/pooling`, as verl's discriminative reward model asks. `one_or_more`: what they take.
//! - [`trl`]: `POST /get_sequence_logprobs/`.

mod one_or_more;
pub(crate) mod openrlhf;
pub(crate) mod slime;
pub(crate) mod trl;
pub(crate) mod vllm;

use qrm_proto::request::ChatMessage;
use qrm_proto::{Datum, Input, TextOrIds};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A message of a conversation. Other keys of it are not the template's here.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Turn {
    role: String,
    content: String,
}

impl From<Turn> for ChatMessage {
    fn from(Turn { role, content }: Turn) -> Self {
        Self { role, content }
    }
}

/// One number for a whole answer, that by which its kind of model is trained to compare answers: an outcome model's only
/// reward, a step model's worst step, log π/π_ref of all of it, else the mean of its rewards.
fn sequence_score(reward: &str, datum: &Datum) -> f32 {
    match reward {
        "outcome" | "dpo" => datum.sum,
        "step" => {
            datum.rewards.values().iter().copied().filter(|r| *r != 0.0).reduce(f32::min).unwrap_or(1.0)
        }
        _ => datum.score,
    }
}

fn text_input(prompt: String, response: String) -> Input {
    Input {
        prompt: Some(TextOrIds::Text(prompt)),
        response: Some(TextOrIds::Text(response)),
        ..Input::default()
    }
}
