//! How many trajectories a body holds, before anything of it is kept: an input of three bytes, `{},`, takes sixty times as
//! many once it is read.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Goes through all of `json`, whatever it says; the error is that it is none. `list` is the body's field with an element
/// for each trajectory, or for each group of them: then an object with `responses`.
pub(super) fn trajectories(json: &str, list: Option<&str>) -> serde_json::Result<usize> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let count = Place::Body(list).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(count)
}

/// Where something stands, and so what of it counts.
#[derive(Clone, Copy)]
enum Place<'a> {
    Body(Option<&'a str>),
    List,
    Element,
    Group,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A number counts nothing: a list of them is one trajectory's ids.
impl<'de> Visitor<'de> for Place<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_u64<E>(self, _: u64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_f64<E>(self, _: f64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_str<E>(self, _: &str) -> Result<usize, E> {
        Ok(usize::from(matches!(self, Self::List | Self::Element)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let mut count = 0;
        match self {
            Self::Body(_) => while seq.next_element::<IgnoredAny>()?.is_some() {},
            Self::List => {
                while let Some(element) = seq.next_element_seed(Self::Element)? {
                    count += element;
                }
            }
            Self::Element => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                count = 1;
            }
            Self::Group => {
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let (counted, within) = match self {
            Self::Body(list) => (list, Self::List),
            Self::Element => (Some("responses"), Self::Group),
            Self::List | Self::Group => (None, self),
        };
        let mut count = 0;
        while let Some(field) = map.next_key::<String>()? {
            match counted == Some(&*field) {
                true => count += map.next_value_seed(within)?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(if matches!(self, Self::Element) { count.max(1) } else { count })
    }
}

#[cfg(test)]
mod tests {
    use super::trajectories;

    #[test]
    fn what_counts() {
        let count = |json: &str| trajectories(json, Some("inputs")).expect("JSON");
        assert_eq!(count(r#"{"inputs":[{},{"responses":[[1],"b",3]},{"responses":[]}],"include":["a"]}"#), 5);
        assert_eq!(count(r#"{"inputs":["a",[1,2],[]]}"#), 3);
        assert_eq!(count(r#"{"inputs":[1,2.5,-3]}"#), 0);
        assert_eq!(count(r#"{"inputs":"a"}"#), 1);
        assert_eq!(count(r#"{"inputs":[{}],"inputs":[{}]}"#), 2, "in whichever a field is twice");
        assert_eq!(count(r#"{"in\u0070uts":[{}]}"#), 1);
        for other in ["null", "true", "1", r#""inputs""#, "[{}]", r#"{"inputs":{"inputs":[{}]}}"#] {
            assert_eq!(count(other), 0, "{other}");
        }
        assert_eq!(trajectories(r#"{"inputs":[{}]}"#, None).expect("JSON"), 0);
    }

    #[test]
    fn what_is_no_json() {
        for text in
            ["", "{", r#"{"inputs":[{}}"#, r#"{"inputs":[]} x"#, r#"{"a":tru}"#, r#"{"inputs":[{},]}"#]
        {
            assert!(trajectories(text, Some("inputs")).is_err(), "{text}");
        }
    }
}
