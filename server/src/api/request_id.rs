//! `x-request-id`: the client's, or one of ours; in the log and in the answer.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are not taken on.
const LONGEST: usize = 128;

/// What the client calls its request, where that is a short visible word; else a name that this process gives once.
pub(crate) fn of(headers: &HeaderMap) -> HeaderValue {
    let is_good =
        |v: &&HeaderValue| (1..=LONGEST).contains(&v.len()) && v.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(REQUEST_ID).filter(is_good).cloned().unwrap_or_else(fresh)
}

fn fresh() -> HeaderValue {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = SEED.hash_one(NEXT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::try_from(format!("{number:016x}")).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_on_or_made() {
        let named = |name: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(name).expect("a value"));
            of(&headers)
        };
        assert_eq!(named(b"step-17/rank-3"), "step-17/rank-3");
        for bad in [&b""[..], b"two words", b"\xff", &[b'a'; 129]] {
            assert_eq!(named(bad).len(), 16, "{bad:?}");
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
