//! A tokenizer trained for the task: byte-level BPE in which every digit is a token of its own.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, TokenizerBuilder};

/// Ends an answer.
pub const END: &str = "<|end|>";
/// Opens a problem and an answer.
const SPECIAL: [&str; 3] = [END, "<|problem|>", "<|answer|>"];

/// Messages as the model was trained on them: the problem, then the answer.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'assistant' %}\
    {{ '<|answer|>' + message.content + '<|end|>' }}{% else %}{{ '<|problem|>' + message.content }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}";

/// Trains on `texts` and writes `tokenizer.json` and `tokenizer_config.json`; gives the number of tokens, at most `size`.
pub fn train(texts: impl Iterator<Item = String> + Send, size: usize, dir: &Path) -> anyhow::Result<usize> {
    let broken = |e: tokenizers::Error| anyhow::anyhow!("training the tokenizer: {e}");
    let special: Vec<AddedToken> = SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), byte_level.into()])))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(broken)?;
    // All 256 bytes are in the alphabet, so that any text can be written.
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(broken)?;
    tokenizer.save(dir.join("tokenizer.json"), true).map_err(broken)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": false,
    });
    std::fs::write(dir.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    Ok(tokenizer.get_vocab_size(true))
}
