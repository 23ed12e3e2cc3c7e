//! Byte ranges of tokens, exact to the byte.
//!
//! The `tokenizers` crate counts in characters: every token that holds a part of a multi-byte character gets all of
//! it, and a post-processor may trim the space a token starts with. The token's own string says which bytes it
//! holds, so a walk along the text gives each token exactly those, as long as the text agrees. Where it does not
//! (a normaliser rewrote it), the crate's range stands.

use tokenizers::{DecoderWrapper, Tokenizer};

/// How token strings spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// One printable character a byte (GPT-2 and all byte-level BPE since).
    ByteLevel,
    /// Text with `▁` for a space and `<0xE2>` for a lone byte (SentencePiece).
    ByteFallback,
}

impl Alphabet {
    /// Told by the decoder, which has to spell the same bytes.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let is_byte_level = |decoder: &DecoderWrapper| matches!(decoder, DecoderWrapper::ByteLevel(_));
        let byte_level = match tokenizer.get_decoder() {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders().iter().any(is_byte_level),
            Some(decoder) => is_byte_level(decoder),
            None => false,
        };
        if byte_level { Self::ByteLevel } else { Self::ByteFallback }
    }

    /// The bytes that the token spells.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let mut bytes = Vec::with_capacity(token.len());
                for c in token.chars() {
                    match BYTE_OF.get(c as usize).copied().flatten() {
                        Some(byte) => bytes.push(byte),
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                bytes
            }
            Self::ByteFallback => match lone_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }

    /// How many bytes at the start of `text` the token spells; none when the text says something else.
    fn spelled(self, token: &str, text: &[u8]) -> Option<usize> {
        match self {
            Self::ByteLevel => {
                let mut bytes = text.iter();
                for c in token.chars() {
                    let expected = BYTE_OF.get(c as usize).copied().flatten()?;
                    bytes.next().filter(|b| **b == expected)?;
                }
                Some(text.len() - bytes.len())
            }
            Self::ByteFallback => {
                if let Some(byte) = lone_byte(token) {
                    return (*text.first()? == byte).then_some(1);
                }
                let mut rest = text;
                for c in token.chars() {
                    let c = if c == '▁' { ' ' } else { c };
                    rest = rest.strip_prefix(c.encode_utf8(&mut [0; 4]).as_bytes())?;
                }
                Some(text.len() - rest.len())
            }
        }
    }
}

/// The byte of a token like `<0xE2>`.
fn lone_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// The byte that each character of the byte-level alphabet stands for: printable Latin-1 is itself, the other
/// bytes follow in order from U+0100.
const BYTE_OF: [Option<u8>; 324] = {
    let mut table = [None; 324];
    let mut next = 256;
    let mut byte = 0;
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        table[if printable { byte } else { next }] = Some(byte as u8);
        next += !printable as usize;
        byte += 1;
    }
    table
};

/// One token as the crate reports it.
pub(super) struct Piece<'a> {
    /// Its string in the vocabulary.
    pub(super) token: &'a str,
    /// The crate's byte range.
    pub(super) range: [usize; 2],
    /// Put in by the post-processor: no text of its own.
    pub(super) inserted: bool,
    /// Of the added vocabulary, so spelled as it is and possibly with the space around it.
    pub(super) added: bool,
}

/// Ranges within `text` with starts that never go back, each beginning where the one before ended unless the
/// crate knows of text in between that no token holds.
pub(super) fn partition<'a>(
    text: &str,
    alphabet: Alphabet,
    pieces: impl Iterator<Item = Piece<'a>>,
) -> Vec<[usize; 2]> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut next = |piece: Piece<'_>| {
        if piece.inserted {
            return [at, at];
        }
        let start = piece.range[0].clamp(at, bytes.len());
        let end = piece.range[1].clamp(start, bytes.len());
        // A match away from the crate's range would be chance: the walk has lost its place there.
        let spelled = || {
            let exact = [at, at + alphabet.spelled(piece.token, &bytes[at..])?];
            (exact[0] <= piece.range[1] && piece.range[0] <= exact[1]).then_some(exact)
        };
        let range = if piece.added { None } else { spelled() }.unwrap_or([start, end]);
        at = range[1];
        range
    };
    pieces.map(&mut next).collect()
}
