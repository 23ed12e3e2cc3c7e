//! Inputs that nobody means: good ones, spoiled. (Other crates include the file where they test parsers: it depends on nothing.)

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What parsers trip over.
const WORDS: [&[u8]; 27] = [
    b"null",
    b"-1",
    b"0",
    b"1e999",
    b"1.5",
    b"18446744073709551615",
    b"18446744073709551616",
    b"4294967295",
    b"\"\"",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"[]",
    b"{}",
    b"[[[[[[[[",
    b"{\"a\":",
    b"]",
    b"}",
    b",",
    b":",
    b"true",
    b"\xff\xfe",
    b"\xf0\x9f\x99\x82",
    b"\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x0a",
    b"\x80",
];

/// A small seeded generator (xorshift64*), so that a failing run can be repeated.
pub struct Rng(u64);

impl Rng {
    /// Seeded.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }

    /// One to six edits of a seed: bits, bytes, words, numbers, pieces lost, doubled, swapped for another seed's.
    pub fn spoil(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let end = at + self.below((bytes.len() - at).min(32) + 1);
            let word = WORDS[self.below(WORDS.len())];
            match self.below(9) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                2 => drop(bytes.splice(at..at, word.iter().copied())),
                3 => drop(bytes.splice(at..end, word.iter().copied())),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                6 => bytes.truncate(at),
                7 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let to = from + self.below((other.len() - from).min(64) + 1);
                    bytes.splice(at..end, other[from..to].iter().copied());
                }
                // A number in place of a number.
                _ => {
                    let digit = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit());
                    if let Some(begin) = digit {
                        let rest = bytes[begin..].iter().take_while(|b| b.is_ascii_digit()).count();
                        bytes.splice(begin..begin + rest, word.iter().copied());
                    }
                }
            }
        }
        bytes
    }
}

/// Gives `parse` as many spoiled seeds as `QRM_FUZZ_INPUTS` says, else `usual`, on two threads. None may panic or take long.
pub fn fuzz(usual: usize, seeds: &[Vec<u8>], parse: impl Fn(usize, &[u8]) + Sync) {
    const LONG: Duration = Duration::from_secs(5);
    let inputs = std::env::var("QRM_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let parse = &parse;
            scope.spawn(move || {
                let mut rng = Rng::new(thread as u64 + 1);
                for _ in 0..inputs / 2 {
                    let input = rng.spoil(seeds);
                    let start = Instant::now();
                    let outcome = catch_unwind(AssertUnwindSafe(|| parse(thread, &input)));
                    let text = String::from_utf8_lossy(&input[..input.len().min(2000)]);
                    assert!(outcome.is_ok(), "a panic at {text:?}");
                    assert!(start.elapsed() < LONG, "{:?} for {text:?}", start.elapsed());
                }
            });
        }
    });
}
