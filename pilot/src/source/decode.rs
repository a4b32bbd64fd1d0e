//! Typed structs from nodes, with the path and line of whatever does not fit.
//!
//! A serde deserializer: whether unknown fields are refused is up to the struct (`deny_unknown_fields`: Istio's kinds), not to this
//! file. A field that is `null` counts as absent. (`store::schema` has types for
//! fields that are always refused and for fields that are always dropped.)

use std::fmt;

use hashbrown::HashSet;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::yaml::{Entry, Node, Value};

/// What does not fit, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Path from the document's root, e.g. `spec.http[0].timeout`.
    pub path: String,
    /// Line from 1; 0 if unknown.
    pub line: u32,
    /// What is wrong, lower-case.
    pub message: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for DecodeError {}

impl DecodeError {
    fn new(line: u32, message: impl Into<String>) -> Self {
        Self { path: String::new(), line, message: message.into() }
    }

    fn under_key(mut self, key: &str, line: u32) -> Self {
        let plain = !key.is_empty() && !key.contains(['.', '[', ']', '"']);
        let part = if plain { key.to_owned() } else { format!("[\"{key}\"]") };
        self.path = join(&part, &self.path);
        self.or_line(line)
    }

    fn under_index(mut self, index: usize, line: u32) -> Self {
        self.path = join(&format!("[{index}]"), &self.path);
        self.or_line(line)
    }

    fn or_line(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

/// Puts a path part in front of a path.
fn join(part: &str, rest: &str) -> String {
    let dot = if rest.is_empty() || rest.starts_with('[') { "" } else { "." };
    format!("{part}{dot}{rest}")
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(0, message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = match closest(field, expected) {
            Some(name) => format!("unknown field, did you mean {name}?"),
            None => "unknown field".to_owned(),
        };
        Self::new(0, hint)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(0, format!("the field {field} is required"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(0, format!("{variant:?} is none of {}", expected.join(", ")))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(0, format!("the field {field} is there twice"))
    }
}

/// The expected name nearest to what was written, if it is near.
pub(crate) fn closest<'a>(written: &str, expected: &[&'a str]) -> Option<&'a str> {
    let scored = expected.iter().map(|name| (distance(&written.to_lowercase(), &name.to_lowercase()), *name));
    let (score, name) = scored.min()?;
    (score <= 1 + written.len() / 4).then_some(name)
}

/// Edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            let best = cost.min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

/// Fills a struct from a node.
pub fn decode<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, DecodeError> {
    T::deserialize(node).map_err(|e| e.or_line(node.line))
}

impl Node {
    fn wanted(&self, what: &str) -> DecodeError {
        let quote = match &self.value {
            Value::Bool(..) | Value::Int(..) | Value::Float(..) if what == "text" => "; put it in quotes",
            _ => "",
        };
        DecodeError::new(self.line, format!("must be {what}, not {}{quote}", self.describe()))
    }

    fn whole_number(&self, what: &str, min: i128, max: i128) -> Result<i128, DecodeError> {
        let number = match &self.value {
            Value::Int(number, _) => *number,
            Value::Float(number, _) if number.fract() == 0.0 && number.abs() < 1e15 => *number as i128,
            _ => return Err(self.wanted(what)),
        };
        if number < min || number > max {
            return Err(DecodeError::new(self.line, format!("{number} is not between {min} and {max}")));
        }
        Ok(number)
    }
}

macro_rules! whole {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let number = self.whole_number("a whole number", i128::from(<$type>::MIN), i128::from(<$type>::MAX))?;
            visitor.$visit(number as $type)
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = DecodeError;

    whole! {
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value, _) => visitor.visit_bool(*value),
            Value::Int(value, text) => match i64::try_from(*value) {
                Ok(value) => visitor.visit_i64(value),
                Err(_) => visitor.visit_borrowed_str(text),
            },
            Value::Float(value, _) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Seq(items) => visitor.visit_seq(Items { items, at: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, None)?),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Bool(value, _) => visitor.visit_bool(*value),
            _ => Err(self.wanted("true or false")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Int(value, _) => visitor.visit_f64(*value as f64),
            Value::Float(value, _) => visitor.visit_f64(*value),
            _ => Err(self.wanted("a number")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Text(text) => visitor.visit_borrowed_str(text),
            _ => Err(self.wanted("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Seq(items) => visitor.visit_seq(Items { items, at: 0 }),
            _ => Err(self.wanted("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, None)?),
            _ => Err(self.wanted("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, Some(fields))?),
            _ => Err(self.wanted("a mapping")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Text(text) => visitor.visit_enum((&**text).into_deserializer()),
            _ => Err(self.wanted("text")),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
}

struct Items<'de> {
    items: &'de [Node],
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(node) = self.items.get(self.at) else { return Ok(None) };
        self.at += 1;
        seed.deserialize(node).map(Some).map_err(|e| e.under_index(self.at - 1, node.line))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
    /// Fields of the struct that is filled; `None` for free mappings.
    fields: Option<&'static [&'static str]>,
}

impl<'de> Entries<'de> {
    fn new(entries: &'de [Entry], fields: Option<&'static [&'static str]>) -> Result<Self, DecodeError> {
        let mut seen = HashSet::with_capacity(entries.len());
        if let Some(twice) = entries.iter().find(|e| !seen.insert(&e.key)) {
            let error = DecodeError::new(twice.line, "is there twice");
            return Err(error.under_key(&twice.key, twice.line));
        }
        Ok(Self { entries: entries.iter(), current: None, fields })
    }

    /// A known field that is null counts as absent. Unknown ones go through, so that they are refused.
    fn skipped(&self, entry: &Entry) -> bool {
        entry.node.value == Value::Null && self.fields.is_some_and(|fields| fields.contains(&&*entry.key))
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        loop {
            let Some(entry) = self.entries.next() else { return Ok(None) };
            if self.skipped(entry) {
                continue;
            }
            self.current = Some(entry);
            let key = de::value::BorrowedStrDeserializer::new(&entry.key);
            return seed
                .deserialize(key)
                .map(Some)
                .map_err(|e: DecodeError| e.under_key(&entry.key, entry.line));
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let entry = self.current.take().expect("serde asks for a key first");
        seed.deserialize(&entry.node).map_err(|e| e.under_key(&entry.key, entry.line))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::source::yaml::parse;
    use crate::store::schema::{Ignored, Unsupported};

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(deny_unknown_fields, rename_all = "camelCase", default)]
    struct Strict {
        name: String,
        port: Option<u16>,
        on: bool,
        share: f64,
        mode: Option<Mode>,
        inner: Vec<Inner>,
        labels: BTreeMap<String, String>,
        later: Option<Unsupported>,
        noise: Ignored,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Inner {
        weight: u32,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Mode {
        #[serde(rename = "ROUND_ROBIN")]
        RoundRobin,
    }

    fn read(text: &str) -> Result<Strict, String> {
        let node = parse(text).unwrap().remove(0);
        decode(&node).map_err(|e| format!("line {}: {e}", e.line))
    }

    #[test]
    fn good() {
        let text = "name: a\nport: 80\non: yes\nshare: 1\nmode: ROUND_ROBIN\ninner: [{weight: 3}]\nlabels: {a: b}\nnoise: {x: [1]}\n";
        let wanted = Strict {
            name: "a".into(),
            port: Some(80),
            on: true,
            share: 1.0,
            mode: Some(Mode::RoundRobin),
            inner: vec![Inner { weight: 3 }],
            labels: [("a".to_owned(), "b".to_owned())].into(),
            later: None,
            noise: Ignored,
        };
        assert_eq!(read(text), Ok(wanted));
        assert_eq!(read("port: null\ninner:\nlater: ~\nname: \"\"\n"), Ok(Strict::default()));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (text, wanted) in [
            ("name: 1.0", "line 1: name: must be text, not the number 1.0; put it in quotes"),
            ("name: no", "line 1: name: must be text, not the boolean no; put it in quotes"),
            ("name: [x]", "line 1: name: must be text, not a list"),
            ("port: 70000", "line 1: port: 70000 is not between 0 and 65535"),
            ("port: \"80\"", "line 1: port: must be a whole number, not the text \"80\""),
            ("port: 1.5", "line 1: port: must be a whole number, not the number 1.5"),
            ("on: \"true\"", "line 1: on: must be true or false, not the text \"true\""),
            ("\nnmae: x", "line 2: nmae: unknown field, did you mean name?"),
            ("zebra: x", "line 1: zebra: unknown field"),
            ("zebra:", "line 1: zebra: unknown field"),
            ("mode: FASTEST", "line 1: mode: \"FASTEST\" is none of ROUND_ROBIN"),
            (
                "inner:\n- weight: 1\n- wieght: 2",
                "line 3: inner[1].wieght: unknown field, did you mean weight?",
            ),
            ("inner: [{}]", "line 1: inner[0]: the field weight is required"),
            ("inner: {weight: 1}", "line 1: inner: must be a list, not a mapping"),
            (
                "labels: {a.b/c: 1}",
                "line 1: labels[\"a.b/c\"]: must be text, not the number 1; put it in quotes",
            ),
            ("labels: {a: x, a: y}", "line 1: labels.a: is there twice"),
            ("name: a\nname: b", "line 2: name: is there twice"),
            ("later: {}", "line 1: later: is not supported yet"),
            ("- a", "line 1: : must be a mapping, not a list"),
        ] {
            assert_eq!(read(text), Err(wanted.to_owned()), "{text}");
        }
    }
}
