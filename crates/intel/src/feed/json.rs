//! JSON of strangers: objects one at a time, and scalars whose type nobody is sure of.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::FeedError;

/// An error of the parser, in the words of a feed.
pub(super) fn error(format: &'static str, error: &serde_json::Error) -> FeedError {
    FeedError::Format {
        format,
        what: error.to_string(),
    }
}

/// Gives each object of the list called `objects`, or of a list that is the whole text, and its number from 1. What the
/// list's neighbours say is answered.
pub(super) fn each_object(text: &[u8], mut visit: impl FnMut(u64, &Value)) -> Result<Neighbours, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let neighbours = Whole { visit: &mut visit }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(neighbours)
}

/// What stands beside the objects.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// `type`.
    pub(super) kind: Option<String>,
    /// `more` of a TAXII envelope.
    pub(super) more: bool,
    /// `next` of a TAXII envelope.
    pub(super) next: Option<String>,
}

type Visit<'a> = &'a mut dyn FnMut(u64, &Value);

struct Whole<'a> {
    visit: Visit<'a>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Neighbours;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Neighbours, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Neighbours;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a list called objects, or a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Neighbours, A::Error> {
        Objects(self.visit).visit_seq(list)?;
        Ok(Neighbours::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Neighbours, A::Error> {
        let mut neighbours = Neighbours::default();
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "objects" => {
                    found = true;
                    map.next_value_seed(Objects(&mut *self.visit))?;
                }
                "type" => neighbours.kind = map.next_value::<Loose>()?.0,
                "more" => neighbours.more = map.next_value::<Loose>()?.is_true(),
                "next" => neighbours.next = map.next_value::<Loose>()?.0,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        // A TAXII server that has nothing answers an envelope without objects.
        if !found && neighbours.kind.as_deref().is_some_and(|kind| kind != "bundle") {
            return Err(A::Error::custom("there is no list called objects"));
        }
        Ok(neighbours)
    }
}

struct Objects<'a>(Visit<'a>);

impl<'de> DeserializeSeed<'de> for Objects<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Objects<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(object) = list.next_element::<Value>()? {
            number += 1;
            (self.0)(number, &object);
        }
        Ok(())
    }
}

/// A scalar as text, whether it came as text, number or truth value. Anything else is as good as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loose(pub(super) Option<String>);

impl Loose {
    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self.as_str(), "true" | "1" | "True")
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Loose;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_str<E>(self, v: &str) -> Result<Loose, E> {
                Ok(Loose(Some(v.to_owned())))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Loose, E> {
                Ok(Loose(Some(v.to_string())))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Loose, E> {
                Ok(Loose(Some(v.to_string())))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Loose, E> {
                Ok(Loose(Some(v.to_string())))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Loose, E> {
                Ok(Loose(Some(v.to_string())))
            }
            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Loose, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A text of an object; empty when there is none.
pub(super) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of a list of an object.
pub(super) fn texts<'a>(object: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a str> {
    object
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}
