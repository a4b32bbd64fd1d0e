//! Which fields a type reads, found out by deserializing it from nothing: every field is offered, and what is asked of its value is
//! noted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use osier_pilot::store::schema::Unsupported;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// What a type does with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// It reads it; the values that an enum has.
    Read(&'static [&'static str]),
    /// It refuses any value.
    Refused,
    /// It takes any value and drops it.
    Dropped,
}

/// The fields of `T` by path, beginning with `prefix`.
pub fn fields<'de, T: Deserialize<'de>>(prefix: &str) -> BTreeMap<String, Use> {
    let seen = Seen::default();
    // A refused field ends its round, and is not offered in the next one.
    while let Err(error) = T::deserialize(Tracer { seen: &seen, path: prefix.to_owned() }) {
        assert!(error.refused, "{prefix}: {error}");
    }
    seen.found.into_inner()
}

#[derive(Default)]
struct Seen {
    found: RefCell<BTreeMap<String, Use>>,
    refused: RefCell<BTreeSet<String>>,
}

struct Tracer<'t> {
    seen: &'t Seen,
    path: String,
}

#[derive(Debug)]
struct TraceError {
    message: String,
    refused: bool,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TraceError {}

impl de::Error for TraceError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), refused: false }
    }
}

impl Tracer<'_> {
    fn note(&self, what: Use) {
        self.seen.found.borrow_mut().insert(self.path.clone(), what);
    }

    fn below(&self, part: &str) -> Self {
        Self { seen: self.seen, path: format!("{}{part}", self.path) }
    }
}

macro_rules! scalars {
    ($($method:ident $visit:ident $value:expr),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
            self.note(Use::Read(&[]));
            visitor.$visit($value)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Tracer<'_> {
    type Error = TraceError;

    scalars! {
        deserialize_any visit_str "", deserialize_bool visit_bool false,
        deserialize_u8 visit_u8 0, deserialize_u16 visit_u16 0, deserialize_u32 visit_u32 0, deserialize_u64 visit_u64 0,
        deserialize_i8 visit_i8 0, deserialize_i16 visit_i16 0, deserialize_i32 visit_i32 0, deserialize_i64 visit_i64 0,
        deserialize_f32 visit_f32 0.0, deserialize_f64 visit_f64 0.0,
        deserialize_char visit_char ' ', deserialize_str visit_str "", deserialize_string visit_str "",
        deserialize_bytes visit_str "", deserialize_byte_buf visit_str "", deserialize_identifier visit_str ""
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
        self.note(Use::Read(&[]));
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
        self.note(Use::Dropped);
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: V,
    ) -> Result<V::Value, TraceError> {
        assert_eq!(name, Unsupported::NAME, "{}", self.path);
        self.note(Use::Refused);
        self.seen.refused.borrow_mut().insert(self.path.clone());
        Err(TraceError { message: self.path, refused: true })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, TraceError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
        visitor.visit_seq(One { item: Some(self.below("[]")) })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, TraceError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, TraceError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TraceError> {
        visitor.visit_map(Each { of: self, keys: vec!["<name>"], current: "" })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TraceError> {
        let keys = fields.iter().rev().copied().collect();
        visitor.visit_map(Each { of: self, keys, current: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TraceError> {
        self.note(Use::Read(variants));
        visitor.visit_enum(variants[0].into_deserializer())
    }
}

/// A list with one element.
struct One<'t> {
    item: Option<Tracer<'t>>,
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = TraceError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, TraceError> {
        self.item.take().map(|item| seed.deserialize(item)).transpose()
    }
}

/// A mapping with each key once, the last first.
struct Each<'t> {
    of: Tracer<'t>,
    keys: Vec<&'static str>,
    current: &'static str,
}

impl Each<'_> {
    fn value(&self) -> Tracer<'_> {
        let dot = if self.of.path.is_empty() { "" } else { "." };
        self.of.below(&format!("{dot}{}", self.current))
    }
}

impl<'de> MapAccess<'de> for Each<'_> {
    type Error = TraceError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TraceError> {
        while let Some(key) = self.keys.pop() {
            self.current = key;
            if !self.of.seen.refused.borrow().contains(&self.value().path) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TraceError> {
        seed.deserialize(self.value())
    }
}
