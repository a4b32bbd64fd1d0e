//! Claims of a token: JSON as a tree of our own, read once when the token is.
//!
//! Stricter than JSON in two ways, since what one side reads otherwise than the other is how checks are evaded: a name may not come
//! twice, and trees have an end.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// Deepest nesting that is read (Envoy's limit for JSON).
const MAX_DEPTH: usize = 100;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Text.
    Text(Box<str>),
    /// A number, as far as a double holds it.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A list.
    List(Box<[Claim]>),
    /// An object.
    Map(Claims),
    /// Nothing.
    Null,
}

/// Values by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Claims(Box<[(Box<str>, Claim)]>);

impl Claims {
    /// Reads a JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let value = Level(0).deserialize(&mut deserializer)?;
        deserializer.end()?;
        match value {
            Claim::Map(claims) => Ok(claims),
            _ => Err(serde_json::Error::custom("is no object")),
        }
    }

    /// The value called `name`.
    pub fn get(&self, name: &str) -> Option<&Claim> {
        let at = self.0.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// The value at the end of a path of names.
    pub fn at<'n>(&self, path: impl IntoIterator<Item = &'n str>) -> Option<&Claim> {
        let mut path = path.into_iter();
        let mut found = self.get(path.next()?)?;
        for name in path {
            let Claim::Map(inner) = found else { return None };
            found = inner.get(name)?;
        }
        Some(found)
    }

    /// The same with texts of words as lists of them, where they have one of these names.
    pub fn with_words(mut self, names: &[Box<str>]) -> Self {
        for (name, claim) in &mut self.0 {
            if let Claim::Text(text) = claim
                && names.contains(name)
            {
                let words = text.split(' ').filter(|word| !word.is_empty());
                *claim = Claim::List(words.map(|word| Claim::Text(word.into())).collect());
            }
        }
        self
    }
}

impl fmt::Display for Claim {
    /// As a header has it: texts, numbers and flags as they are, lists and objects as JSON in Base64, nothing for nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Envoy writes other numbers with the six digits of C++.
        const BOUND: f64 = u64::MAX as f64;
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) if (0.0..BOUND).contains(number) && number.fract() == 0.0 => {
                write!(f, "{}", *number as u64)
            }
            Self::Number(number) => write!(f, "{number:.6}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(_) | Self::Map(_) => {
                let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
                // Such as they come out of Envoy; within JSON they stand in texts only.
                f.write_str(&STANDARD.encode(json.replace('<', "\\u003c").replace('>', "\\u003e")))
            }
            Self::Null => Ok(()),
        }
    }
}

impl Serialize for Claim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Integers that a double holds exactly are written as such.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Number(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
                serializer.serialize_i64(*number as i64)
            }
            Self::Number(number) => serializer.serialize_f64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::List(list) => serializer.collect_seq(list),
            Self::Map(Claims(map)) => serializer.collect_map(map.iter().map(|(name, claim)| (name, claim))),
            Self::Null => serializer.serialize_unit(),
        }
    }
}

/// Reads a value at a depth.
struct Level(usize);

impl Level {
    fn below<E: Error>(&self) -> Result<Self, E> {
        if self.0 < MAX_DEPTH { Ok(Self(self.0 + 1)) } else { Err(E::custom("is nested too deeply")) }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Claim;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claim, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Claim, E> {
        Ok(Claim::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Claim, E> {
        Ok(Claim::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Claim, E> {
        Ok(Claim::Text(text.into()))
    }

    fn visit_unit<E>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Claim, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element_seed(self.below()?)? {
            list.push(value);
        }
        Ok(Claim::List(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claim, A::Error> {
        let mut map: Vec<(Box<str>, Claim)> = Vec::new();
        while let Some(name) = entries.next_key()? {
            map.push((name, entries.next_value_seed(self.below()?)?));
        }
        map.sort_by(|(a, _), (b, _)| a.cmp(b));
        if map.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom("has a name twice"));
        }
        Ok(Claim::Map(Claims(map.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let claims = Claims::parse(br#"{"b": {"c": ["x", 1, null]}, "a": "one  two", "d": true}"#).unwrap();
        assert_eq!(claims.get("d"), Some(&Claim::Flag(true)));
        let list = [Claim::Text("x".into()), Claim::Number(1.0), Claim::Null];
        assert_eq!(claims.at(["b", "c"]), Some(&Claim::List(list.into())));
        for path in [&["b", "x"][..], &["a", "b"], &["e"], &[]] {
            assert_eq!(claims.at(path.iter().copied()), None, "{path:?}");
        }
        let words = claims.with_words(&["a".into(), "d".into()]);
        let list = [Claim::Text("one".into()), Claim::Text("two".into())];
        assert_eq!(words.get("a"), Some(&Claim::List(list.into())));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert!(Claims::parse(deep(100).as_bytes()).is_ok());
        for json in [
            "",
            "[]",
            "null",
            "\"a\"",
            "{\"a\": 1} x",
            "{\"a\": 1, \"a\": 2}",
            "{\"x\": [{\"a\": 1, \"\\u0061\": 2}]}",
            "{a: 1}",
            "{\"a\": 1,}",
            "{\"a\": 1e999}",
            "{\"a\": \"\\ud800\"}",
            &deep(101),
            &deep(100_000),
        ] {
            assert!(Claims::parse(json.as_bytes()).is_err(), "{}", &json[..json.len().min(40)]);
        }
        assert!(Claims::parse(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn headers_have_them_as_envoy_writes_them() {
        for (claim, text) in [
            (Claim::Text("a b".into()), "a b"),
            (Claim::Number(7.0), "7"),
            (Claim::Number(-7.0), "-7.000000"),
            (Claim::Number(1.5), "1.500000"),
            (Claim::Flag(false), "false"),
            (Claim::Null, ""),
            (
                Claim::List([Claim::Flag(true), Claim::Number(-2.0), Claim::Null].into()),
                "W3RydWUsLTIsbnVsbF0=",
            ),
            (Claim::Map(Claims([("a".into(), Claim::Text("~?".into()))].into())), "eyJhIjoifj8ifQ=="),
        ] {
            assert_eq!(claim.to_string(), text);
        }
    }
}
