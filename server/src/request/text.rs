//! Text to token ids that the model has.

use qrm_model::RewardModel;
use qrm_model::text::Encoded;

use super::Invalid;

/// A tokenizer may drop some of a text (runs of space, say): three bytes of four are allowed for.
const SLACK: usize = 4;

/// Of a text that has to fit the context: one that cannot is not read, which would take long.
pub(crate) fn encode_fitting(
    model: &RewardModel,
    text: &str,
    add_special_tokens: bool,
    param: &str,
) -> Result<Encoded, Invalid> {
    let context = model.context_length();
    if text.len() > context.saturating_mul(SLACK * model.text().longest_token()) {
        let message = format!("{} bytes are more than the context's {context} tokens can hold", text.len());
        return Err(Invalid::field(param, "context_length_exceeded", message));
    }
    encode(model, text, add_special_tokens, param)
}

/// Of any text.
pub(crate) fn encode(
    model: &RewardModel,
    text: &str,
    add_special_tokens: bool,
    param: &str,
) -> Result<Encoded, Invalid> {
    let encoded = model.text().encode(text, add_special_tokens).map_err(|e| Invalid::text(&e, param))?;
    check_ids(model, &encoded.ids, param)?; // a tokenizer may know ids that the weights do not
    Ok(encoded)
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
