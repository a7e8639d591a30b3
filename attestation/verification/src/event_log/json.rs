//! JSON of logs that others wrote, strictly: no duplicate keys, bounded depth, whole numbers only as integers.
//!
//! serde_json keeps the last of two equal keys and nests 128 deep; a log that two readers understand
//! differently is worth nothing, so both are refused here.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::Reject;

/// Deepest nesting: a CEL record has four levels.
const DEPTH_MAX: usize = 8;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(u64),
    /// Negative or broken; kept as nothing since no field here has one.
    OtherNumber,
    Text(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// Reads exactly one value.
    pub(super) fn read(text: &str) -> Result<Self, Reject> {
        let mut d = serde_json::Deserializer::from_str(text);
        let value = Level(DEPTH_MAX).deserialize(&mut d).map_err(|_| Reject::Malformed)?;
        d.end().map_err(|_| Reject::TrailingData)?;
        Ok(value)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(key),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<u64> {
        match self {
            Self::Integer(n) => Some(*n),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }
}

/// How many levels may still open.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn below<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("nested too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Json, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(below)? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let value = access.next_value_seed(below)?;
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Json::Map(map))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        String::deserialize(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_value_and_refuses_what_readers_differ_on() {
        let value = Json::read(r#"{"a":[1,null,true,"x",-1,1.5]}"#).unwrap();
        let list = value.get("a").and_then(Json::list).unwrap();
        assert_eq!(
            (list[0].integer(), list[3].text(), &list[4]),
            (Some(1), Some("x"), &Json::OtherNumber)
        );
        assert_eq!(Json::read(r#"{"a":1,"a":1}"#), Err(Reject::Malformed), "a key twice");
        assert_eq!(Json::read(r#"{"a":1,"\u0061":1}"#), Err(Reject::Malformed), "in two spellings");
        assert_eq!(Json::read(r#"{"b":{"a":1,"a":2}}"#), Err(Reject::Malformed), "further down");
        assert_eq!(Json::read("{} {}"), Err(Reject::TrailingData));
        let nested = |n: usize| Json::read(&("[".repeat(n) + &"]".repeat(n))).map(drop);
        assert_eq!(nested(8), Ok(()));
        assert_eq!(nested(9), Err(Reject::Malformed));
        assert_eq!(nested(100_000), Err(Reject::Malformed));
    }
}
