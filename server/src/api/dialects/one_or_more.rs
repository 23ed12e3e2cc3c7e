//! vLLM's `input`: a text, token ids, or a list of either.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// `Serialize` for the schema, which has the form from it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// By its first element, as it comes: serde's own would keep all of it in between, at 32 bytes for each number.
impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMoreVisitor;
        impl<'de> Visitor<'de> for OneOrMoreVisitor {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, token ids, or a list of either")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::Text(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                Ok(match list.next_element::<First>()? {
                    None => OneOrMore::Ids(Vec::new()),
                    Some(First::Id(id)) => OneOrMore::Ids(rest(id, list)?),
                    Some(First::Text(text)) => OneOrMore::Texts(rest(text, list)?),
                    Some(First::Ids(ids)) => OneOrMore::IdLists(rest(ids, list)?),
                })
            }
        }
        deserializer.deserialize_any(OneOrMoreVisitor)
    }
}

/// What a list is of.
enum First {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor;
        impl<'de> Visitor<'de> for FirstVisitor {
            type Value = First;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id, or token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<First, E> {
                let other = |_| E::invalid_value(Unexpected::Unsigned(id), &self);
                u32::try_from(id).map(First::Id).map_err(other)
            }

            fn visit_str<E>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<First, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(First::Ids)
            }
        }
        deserializer.deserialize_any(FirstVisitor)
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}
