//! Typed reading of JSON objects whose errors name the field at fault.

use serde_json::{Map, Value};

/// What is wrong, naming the field.
pub(super) type FieldError = String;

/// A JSON object being read. A field that is `null` reads as absent, as in `transformers`.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A whole number in `1 ..= limit`.
    pub(super) fn size(self, name: &str, limit: usize) -> Result<Option<usize>, FieldError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match number.filter(|n| (1..=limit).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{name} is {value}, not a whole number from 1 to {limit}")),
        }
    }

    pub(super) fn required_size(self, name: &str, limit: usize) -> Result<usize, FieldError> {
        self.size(name, limit)?.ok_or_else(|| missing(name))
    }

    /// A number above zero.
    pub(super) fn positive(self, name: &str) -> Result<Option<f64>, FieldError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{name} is {value}, not a number above 0")),
        }
    }

    pub(super) fn required_positive(self, name: &str) -> Result<f64, FieldError> {
        self.positive(name)?.ok_or_else(|| missing(name))
    }

    pub(super) fn flag(self, name: &str) -> Result<bool, FieldError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(format!("{name} is {other}, not true or false")),
        }
    }

    pub(super) fn text(self, name: &str) -> Result<Option<&'a str>, FieldError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{name} is {other}, not a string")),
        }
    }

    pub(super) fn list(self, name: &str) -> Result<Option<&'a [Value]>, FieldError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(format!("{name} is {other}, not a list")),
        }
    }

    pub(super) fn object(self, name: &str) -> Result<Option<Fields<'a>>, FieldError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields(object))),
            Some(other) => Err(format!("{name} is {other}, not an object")),
        }
    }
}

pub(super) fn missing(name: &str) -> FieldError {
    format!("{name} is missing")
}
