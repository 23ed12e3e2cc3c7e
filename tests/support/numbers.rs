//! The numbers in an answer.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Those of a JSON array.
pub fn doubles(of: &Value) -> Vec<f64> {
    of.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The same in f32, as the engine has them.
pub fn floats(of: &Value) -> Vec<f32> {
    doubles(of).into_iter().map(|x| x as f32).collect()
}

/// Those of a string in base64, f32 as well.
pub fn from_base64(of: &Value) -> Vec<f32> {
    let bytes = BASE64_STANDARD.decode(of.as_str().expect("a string")).expect("base64");
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty(), "{} bytes are not four a number", bytes.len());
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
