//! Finds what a resource carries beyond the declared schema, by walking its wire bytes.
//!
//! Decoding drops a field that is not declared, and a proxy that ignored it would do something else than what was configured. So
//! fields, enum values and types that are not declared are refused by name, with their full path. The exceptions are listed in
//! [`ACCEPTED`], each with its reason. The walk needs a small static table only, not the reflection pool.

mod accepted;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;

pub(crate) use accepted::is_accepted_name;
pub use accepted::{ACCEPTED, Accepted};
use table::{Enum, Field, Kind, Message};

use crate::any::Any;
use wire::{Malformed, Record, Records};

/// Most findings of one resource; who sends more gets the first ones.
pub const MAX_FINDINGS: usize = 16;
/// As deep as prost decodes.
const MAX_DEPTH: usize = 100;

/// Something that is not declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Unknown {
    /// Where, e.g. `filter_chains[0].filters[0].typed_config.http_filters[2].typed_config.foo`; empty for the resource itself.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// All that is not declared in a packed message, in the order of its bytes. Empty where everything is understood.
pub fn unknown_fields(any: &Any) -> Vec<Unknown> {
    let mut walk = Walk { path: Vec::new(), found: Vec::new() };
    walk.any(&any.type_url, &any.value, false);
    walk.found
}

/// One step of a path.
enum Segment {
    Field(&'static str),
    Number(u32),
    Index(u32),
    Key(String),
}

struct Walk {
    path: Vec<Segment>,
    found: Vec<Unknown>,
}

impl Walk {
    /// `optional`: a type that is not declared may be skipped.
    fn any(&mut self, type_url: &str, value: &[u8], optional: bool) {
        let name = type_url.rsplit('/').next().unwrap_or_default();
        match table::message(name) {
            Some(message) => self.message(message, value),
            None if name.starts_with("google.protobuf.") || optional => {}
            None if name.is_empty() => self.report("has no type"),
            None => self.report(format_args!("type {name} is not supported")),
        }
    }

    fn message(&mut self, message: &'static Message, bytes: &[u8]) {
        if self.path.len() > MAX_DEPTH {
            return self.report("is nested too deeply");
        }
        if let Err(Malformed) = self.fields(message, bytes) {
            self.report(format_args!("malformed {}", message.name));
        }
    }

    fn fields(&mut self, message: &'static Message, bytes: &[u8]) -> Result<(), Malformed> {
        let optional = is_optional(message, bytes)?;
        let mut counts: Vec<(u32, u32)> = Vec::new();
        for record in Records::new(bytes) {
            let (number, record) = record?;
            let Some(field) = message.field(number) else {
                // A list that is not declared is one finding.
                if next_index(&mut counts, number) == 0 {
                    self.undeclared_field(message, number);
                }
                continue;
            };
            self.path.push(Segment::Field(field.name));
            if field.repeated && !matches!(field.kind, Kind::Opaque | Kind::Map(_)) {
                self.path.push(Segment::Index(next_index(&mut counts, number)));
                self.field(field, record, optional)?;
                self.path.pop();
            } else {
                self.field(field, record, optional)?;
            }
            self.path.pop();
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, record: Record<'_>, optional: bool) -> Result<(), Malformed> {
        match (field.kind, record) {
            (Kind::Opaque, _) => {}
            (Kind::Message(index), Record::Bytes(bytes)) => self.message(&table::MESSAGES[index], bytes),
            (Kind::Map(index), Record::Bytes(bytes)) => self.map_entry(&table::MESSAGES[index], bytes)?,
            (Kind::Any, Record::Bytes(bytes)) => {
                let (type_url, value) = read_any(bytes)?;
                self.any(type_url, value, optional);
            }
            (Kind::Enum(index), Record::Varint(value)) => self.value(&table::ENUMS[index], value),
            (Kind::Enum(index), Record::Bytes(packed)) if field.repeated => {
                wire::varints(packed)
                    .try_for_each(|value| value.map(|value| self.value(&table::ENUMS[index], value)))?;
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn map_entry(&mut self, entry: &'static Message, bytes: &[u8]) -> Result<(), Malformed> {
        let mut key = "";
        for record in Records::new(bytes) {
            if let (1, Record::Bytes(bytes)) = record? {
                key = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
            }
        }
        self.path.push(Segment::Key(key.to_owned()));
        let value = entry.field(2).ok_or(Malformed)?;
        for record in Records::new(bytes) {
            if let (2, record) = record? {
                self.field(value, record, false)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    fn value(&mut self, of: &Enum, value: u64) {
        // Negative numbers are sign-extended on the wire.
        let value = value as i32;
        if of.values.binary_search(&value).is_ok() {
            return;
        }
        match of.undeclared.iter().find(|(number, _)| *number == value) {
            Some((_, name)) => self.report(format_args!("{name} is not supported")),
            None => self.report(format_args!("{value} is no value of {}", of.name)),
        }
    }

    fn undeclared_field(&mut self, message: &'static Message, number: u32) {
        if accepted::is_accepted(message.name, number) {
            return;
        }
        let known = message.undeclared.iter().find(|(undeclared, _)| *undeclared as u32 == number);
        self.path.push(known.map_or(Segment::Number(number), |(_, name)| Segment::Field(name)));
        self.report(format_args!("not supported (field {number} of {})", message.name));
        self.path.pop();
    }

    fn report(&mut self, reason: impl fmt::Display) {
        if self.found.len() < MAX_FINDINGS {
            self.found.push(Unknown { path: show(&self.path), reason: reason.to_string() });
        }
    }
}

/// True where the message says that its extension may be skipped if its type is not known (`is_optional` of an HTTP filter).
fn is_optional(message: &Message, bytes: &[u8]) -> Result<bool, Malformed> {
    let Some(field) = message.fields.iter().find(|field| field.name == "is_optional") else {
        return Ok(false);
    };
    let mut optional = false;
    for record in Records::new(bytes) {
        if let (number, Record::Varint(value)) = record?
            && number == field.number
        {
            optional = value != 0;
        }
    }
    Ok(optional)
}

fn read_any(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut type_url, mut value) = ("", &[][..]);
    for record in Records::new(bytes) {
        match record? {
            (1, Record::Bytes(bytes)) => type_url = std::str::from_utf8(bytes).map_err(|_| Malformed)?,
            (2, Record::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((type_url, value))
}

fn next_index(counts: &mut Vec<(u32, u32)>, number: u32) -> u32 {
    match counts.iter_mut().find(|(counted, _)| *counted == number) {
        Some((_, count)) => {
            *count += 1;
            *count
        }
        None => {
            counts.push((number, 0));
            0
        }
    }
}

fn show(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        let dot = if text.is_empty() { "" } else { "." };
        match segment {
            Segment::Field(name) => text.push_str(&format!("{dot}{name}")),
            Segment::Number(number) => text.push_str(&format!("{dot}#{number}")),
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
            Segment::Key(key) => text.push_str(&format!("[{key:?}]")),
        }
    }
    text
}
