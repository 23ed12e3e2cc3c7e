//! Whether a server's model has the policy's vocabulary. Ids of another one are in range more often than not, and the rewards
//! of what they mean there look like any others.

use qrm_model::text::TextProcessor;

use super::RewardError;

/// What a server is asked to tokenise. It has no special tokens: a policy may have some of its own.
pub(super) const TEXT: &str = "How many apples does she have left? 12 + 30 = 42, and 42 - 5 = 37.";

/// Compares the strings that ids stand for at `url` with the policy's. Where a text is cut does not matter: two settings of
/// one tokenizer may differ in it, and it is ids that are sent.
pub(super) fn check(
    url: &str,
    tokens: Vec<(u32, String)>,
    policy: &TextProcessor,
) -> Result<(), RewardError> {
    for (id, theirs) in tokens {
        let ours = policy.token(id).unwrap_or_default();
        if ours != theirs {
            return Err(RewardError::Vocabulary { url: url.to_owned(), id, theirs, ours });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn text(of: &str) -> TextProcessor {
        TextProcessor::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of)).unwrap()
    }

    fn tokens(text: &TextProcessor) -> Vec<(u32, String)> {
        let ids = text.encode(TEXT, false).unwrap().ids;
        ids.into_iter().map(|id| (id, text.token(id).unwrap())).collect()
    }

    #[test]
    fn another_vocabulary_is_told_by_its_first_other_token() {
        let (fixture, built_in) = (text("tests/fixtures/qwen2"), text("server/default-model"));
        assert!(check("", tokens(&fixture), &text("tests/fixtures/llama-tied")).is_ok());
        for (server, policy) in [(&built_in, &fixture), (&fixture, &built_in)] {
            let Err(RewardError::Vocabulary { url, id, theirs, ours }) =
                check("http://s", tokens(server), policy)
            else {
                panic!("they are not the same")
            };
            assert_eq!(url, "http://s");
            assert_eq!(server.token(id), Some(theirs.clone()));
            assert_ne!(theirs, ours);
        }
    }
}
