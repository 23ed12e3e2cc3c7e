//! Training data: JSONL rows become token ids before training starts.
//!
//! - pairs: `{"prompt" | "messages", "chosen", "rejected"}`; `"first_wrong"`, the byte at which `rejected` goes wrong, lets
//!   an evaluation say how well its token is found
//! - sft: `{"prompt" | "messages", "response"}`
//! - steps: as sft, with `"steps": [{"end", "label"}]`; `end` is the byte of the response where a step ends, `label` one
//!   of −1, 0, 1.
//!
//! A text is a string or a list of token ids. Prompts are tokenised as they are, special tokens in them recognised.

mod rows;

use std::fmt;
use std::path::{Path, PathBuf};

use qrm_model::{RewardModel, Trajectory};

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two answers, the better one first.
    Pairs,
    /// One answer.
    Answers,
    /// One answer with labelled steps.
    Steps,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Chosen and rejected, or the one answer.
    pub answers: Vec<Trajectory>,
    /// Of pairs: the token of the rejected answer at which it goes wrong, where that is known.
    pub first_wrong: Option<usize>,
    /// `(response token, label)` of each step's last token, and of the end of sequence.
    pub steps: Vec<(usize, f32)>,
    /// Of pairs trained against a reference policy: `Σ_t log π_ref` of each answer.
    pub reference: Vec<f32>,
}

impl Example {
    /// Tokens when nothing is shared.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(Trajectory::len).sum()
    }

    /// Response tokens.
    pub fn response_tokens(&self) -> usize {
        self.answers.iter().map(|t| t.response_ids.len()).sum()
    }
}

/// Tells one set of examples from another: CRC-32C of all tokens and labels.
pub fn checksum(examples: &[Example]) -> u32 {
    let mut sum = 0;
    let mut add = |bytes: &[u8]| sum = crc32c::crc32c_append(sum, bytes);
    for example in examples {
        for answer in &example.answers {
            for ids in [&answer.prompt_ids, &answer.response_ids] {
                add(&ids.len().to_le_bytes());
                ids.iter().for_each(|id| add(&id.to_le_bytes()));
            }
        }
        for (token, label) in &example.steps {
            add(&token.to_le_bytes());
            add(&label.to_le_bytes());
        }
    }
    sum
}

/// Rows that cannot be used, each with its line number.
#[derive(Debug, thiserror::Error)]
pub struct BadRows {
    /// The file.
    pub path: PathBuf,
    /// `(line, what is wrong)`, lines from 1.
    pub rows: Vec<(usize, String)>,
}

/// Rows named in a message; the rest are counted.
const NAMED: usize = 20;

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bad rows", self.path.display(), self.rows.len())?;
        for (line, message) in self.rows.iter().take(NAMED) {
            write!(f, "\n  line {line}: {message}")?;
        }
        match self.rows.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// How rows become token ids.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// What the rows are.
    pub kind: Kind,
    /// The end-of-sequence token closes every answer.
    pub append_eos: bool,
}

/// Reads and tokenises a file for `model`. Fails with [`BadRows`] when any row is bad.
pub fn load(path: &Path, format: Format, model: &RewardModel) -> anyhow::Result<Vec<Example>> {
    let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let (mut examples, mut bad) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match rows::read(line, format, model) {
            Ok(example) => examples.push(example),
            Err(message) => bad.push((number + 1, message)),
        }
    }
    if !bad.is_empty() {
        return Err(BadRows { path: path.to_owned(), rows: bad }.into());
    }
    anyhow::ensure!(!examples.is_empty(), "{}: no rows", path.display());
    Ok(examples)
}
