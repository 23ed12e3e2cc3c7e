//! Ids of text and text of ids, over the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::offsets::{Alphabet, Piece, partition};
use super::{Encoded, TextError, config};

const FILE: &str = "tokenizer.json";

/// A checkpoint's tokenizer with its serving settings (truncation, padding) off.
pub(super) struct TextTokenizer {
    /// The crate's tokenizer.
    inner: Tokenizer,
    /// How its token strings spell bytes.
    alphabet: Alphabet,
    /// Bytes of its longest token's string.
    longest: usize,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`.
    pub(super) fn load(dir: &Path) -> Result<Self, TextError> {
        let json = config::read(dir, FILE)?.ok_or(TextError::Missing(FILE))?;
        let broken = |message: String| TextError::File { file: FILE, message };
        let parsed = guarded(|| Tokenizer::from_bytes(json.as_bytes())).map_err(broken)?;
        let mut inner = parsed.map_err(|e| broken(e.to_string()))?;
        // Both would silently change what is scored: a cut response, or padding taken for one.
        inner.with_truncation(None).map_err(|e| broken(e.to_string()))?;
        inner.with_padding(None);
        let alphabet = Alphabet::of(&inner);
        let longest = inner.get_vocab(true).keys().map(String::len).max().unwrap_or_default();
        Ok(Self { inner, alphabet, longest })
    }

    /// Puts these tokens around a text that gets special tokens, and no others.
    pub(super) fn surround(&mut self, begin: Option<&str>, end: Option<&str>) -> Result<(), TextError> {
        let broken = |message: String| TextError::File { file: "tokenizer_config.json", message };
        let piece = |token: Option<&str>| token.map(|token| format!("{token}:0"));
        let single: Vec<String> =
            [piece(begin), Some("$A:0".into()), piece(end)].into_iter().flatten().collect();
        let ids = [begin, end].into_iter().flatten().map(|token| {
            let id = self.id(token).ok_or_else(|| broken(format!("{token:?} is no token")))?;
            Ok((token.to_owned(), id))
        });
        let special = ids.collect::<Result<Vec<_>, TextError>>()?;
        let template = TemplateProcessing::builder()
            .try_single(single)
            .map_err(broken)?
            .special_tokens(special)
            .build()
            .map_err(|e| broken(e.to_string()))?;
        self.inner.with_post_processor(Some(template));
        Ok(())
    }

    /// Ids and byte ranges of `text`.
    pub(super) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, TextError> {
        let encoding = self.call(|| self.inner.encode(text, add_special_tokens))?;
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let ids = encoding.get_ids().to_vec();
        let pieces = ids.iter().enumerate().map(|(i, id)| Piece {
            token: &encoding.get_tokens()[i],
            range: encoding.get_offsets()[i].into(),
            inserted: encoding.get_special_tokens_mask()[i] == 1,
            added: added.contains_key(id),
        });
        let offsets = partition(text, self.alphabet, pieces);
        Ok(Encoded { ids, offsets })
    }

    /// Text of `ids`; ids without a token are skipped.
    pub(super) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.call(|| self.inner.decode(ids, skip_special_tokens))
    }

    /// The bytes of text that `id` stands for; none of an id without a token.
    pub(super) fn bytes(&self, id: u32) -> Vec<u8> {
        match self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            Some(token) => token.content.clone().into_bytes(),
            None => self.token(id).map_or_else(Vec::new, |token| self.alphabet.bytes(&token)),
        }
    }

    /// No token stands for more bytes of text.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The vocabulary's string for `id`.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token's string.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Both ways for the crate to fail, an error and a panic, as one error.
    fn call<T>(&self, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TextError> {
        guarded(work).map_err(TextError::Tokenize)?.map_err(|e| TextError::Tokenize(e.to_string()))
    }
}

/// Oniguruma panics when a search runs into its limits, which long enough text may bring about. The tokenizer
/// is only read, and its cache is behind a lock of its own, so nothing is left half changed.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("failed inside the tokenizer").to_owned()
    })
}
