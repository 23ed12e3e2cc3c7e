//! Text to token ids that the model has, and back.

use qrm_model::RewardModel;
use qrm_model::text::{Encoded, Message};
use qrm_proto::request::ChatMessage;

use super::Invalid;

/// A tokenizer may drop some of a text (runs of space, say): three bytes of four are allowed for.
const SLACK: usize = 4;

/// Bytes of a text that are read whatever the context, where it may be shortened.
const CUTTABLE: usize = 1 << 20;

/// Messages through the model's chat template.
pub(crate) fn render(
    model: &RewardModel,
    messages: Vec<ChatMessage>,
    param: &str,
) -> Result<String, Invalid> {
    let messages: Vec<_> =
        messages.into_iter().map(|m| Message { role: m.role, content: m.content }).collect();
    model.text().render(&messages).map_err(|e| Invalid::text(&e, param))
}

/// Of a text that has to fit the context: one that cannot is not read, which would take long.
pub(crate) fn encode(
    model: &RewardModel,
    text: &str,
    add_special_tokens: bool,
    param: &str,
) -> Result<Encoded, Invalid> {
    read(model, text, add_special_tokens, param, most_bytes(model))
}

/// Of one that may be shortened to it.
pub(crate) fn encode_to_cut(
    model: &RewardModel,
    text: &str,
    add_special_tokens: bool,
    param: &str,
) -> Result<Encoded, Invalid> {
    read(model, text, add_special_tokens, param, most_bytes(model).max(CUTTABLE))
}

fn most_bytes(model: &RewardModel) -> usize {
    model.context_length().saturating_mul(SLACK * model.text().longest_token())
}

fn read(
    model: &RewardModel,
    text: &str,
    add_special_tokens: bool,
    param: &str,
    most: usize,
) -> Result<Encoded, Invalid> {
    if text.len() > most {
        let context = model.context_length();
        let message = format!("{} bytes are more than the context's {context} tokens can hold", text.len());
        return Err(Invalid::field(param, "context_length_exceeded", message));
    }
    let encoded = model.text().encode(text, add_special_tokens).map_err(|e| Invalid::text(&e, param))?;
    check_ids(model, &encoded.ids, param)?; // a tokenizer may know ids that the weights do not
    Ok(encoded)
}

/// Of ids: as many as would be read of a text.
pub(crate) fn decode(
    model: &RewardModel,
    ids: &[u32],
    skip_special_tokens: bool,
    param: &str,
) -> Result<String, Invalid> {
    let most = model.context_length().saturating_mul(SLACK);
    if ids.len() > most {
        let message = format!("{} tokens, at most {most} are taken", ids.len());
        return Err(Invalid::field(param, "context_length_exceeded", message));
    }
    check_ids(model, ids, param)?;
    model.text().decode(ids, skip_special_tokens).map_err(|e| Invalid::text(&e, param))
}

/// Whether the model has them.
pub(crate) fn check_ids(model: &RewardModel, ids: &[u32], param: &str) -> Result<(), Invalid> {
    let size = model.vocab_size();
    match ids.iter().position(|id| *id as usize >= size) {
        None => Ok(()),
        Some(at) => {
            let message = format!("token id {} at {at}, the vocabulary ends at {size}", ids[at]);
            Err(Invalid::field(param, "token_id_out_of_range", message))
        }
    }
}
