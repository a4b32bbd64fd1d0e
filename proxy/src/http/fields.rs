//! An ordered list of header fields, the same for HTTP/1 and HTTP/2, for heads and for trailers.
//!
//! All text of a list lies in one buffer, and a field is two ranges of it: a head costs two allocations that are kept
//! when the list is cleared and used again. Order, repetition and spelling are those of the wire. What is replaced or
//! removed leaves its bytes behind until the list is cleared; a head lives for one request, so that doesn't add up.
//! Invariant: no name or value that holds CR, LF or NUL gets in (see [`Fields::append`]).

use std::fmt::{self, Write as _};

use super::name::{Known, Name};

/// A range of a text buffer. Never trusted: a range that doesn't fit reads as empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(super) fn new(start: usize, len: usize) -> Self {
        debug_assert!(u32::try_from(start + len).is_ok(), "text of a head is bounded");
        Self { start: start as u32, len: len as u32 }
    }

    pub(super) fn of(self, text: &[u8]) -> &[u8] {
        let start = self.start as usize;
        text.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// Appends `bytes` to `text` and says where they are.
pub(super) fn push(text: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = text.len();
    text.extend_from_slice(bytes);
    Span::new(start, bytes.len())
}

#[derive(Clone, Copy)]
struct Entry {
    known: Option<Known>,
    /// Empty for a known name that isn't in the text: it is spelt in lower case.
    name: Span,
    value: Span,
}

impl Entry {
    fn is(&self, name: Name<'_>, text: &[u8]) -> bool {
        match name {
            Name::Known(known) => self.known == Some(known),
            Name::Other(bytes) => self.known.is_none() && self.name.of(text).eq_ignore_ascii_case(bytes),
        }
    }
}

/// One field of a list.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// Which known name it is, if any.
    pub known: Option<Known>,
    /// The name as it is spelt.
    pub name: &'a [u8],
    /// The value without surrounding white space. Not necessarily UTF-8.
    pub value: &'a [u8],
}

impl Field<'_> {
    /// True where the field has this name.
    pub fn is(&self, name: Name<'_>) -> bool {
        match name {
            Name::Known(known) => self.known == Some(known),
            Name::Other(bytes) => self.known.is_none() && self.name.eq_ignore_ascii_case(bytes),
        }
    }
}

/// An ordered list of header fields.
#[derive(Clone, Default)]
pub struct Fields {
    text: Vec<u8>,
    list: Vec<Entry>,
}

impl Fields {
    /// An empty list; allocates at the first field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of field lines.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True without any field.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Empties the list and keeps its buffers.
    pub fn clear(&mut self) {
        self.text.clear();
        self.list.clear();
    }

    /// Bytes of names and values that are in the list, with the four that each line costs on the wire.
    pub fn wire_len(&self) -> usize {
        self.iter().map(|field| field.name.len() + field.value.len() + 4).sum()
    }

    /// An upper estimate of [`Fields::wire_len`] that costs nothing.
    pub(super) fn text_len(&self) -> usize {
        self.text.len() + self.list.len() * 32
    }

    /// Bytes that the list's buffers hold, used or not.
    pub fn capacity(&self) -> usize {
        self.text.capacity() + self.list.capacity() * size_of::<Entry>()
    }

    /// The first value of `name`.
    pub fn get<'a>(&self, name: impl Into<Name<'a>>) -> Option<&[u8]> {
        let name = name.into();
        self.list.iter().find(|entry| entry.is(name, &self.text)).map(|entry| entry.value.of(&self.text))
    }

    /// All values of `name`, in order.
    pub fn get_all<'s, 'a: 's>(&'s self, name: impl Into<Name<'a>>) -> impl Iterator<Item = &'s [u8]> + 's {
        let name = name.into();
        self.list
            .iter()
            .filter(move |entry| entry.is(name, &self.text))
            .map(|entry| entry.value.of(&self.text))
    }

    /// True where `name` is there.
    pub fn contains<'a>(&self, name: impl Into<Name<'a>>) -> bool {
        self.get(name).is_some()
    }

    /// True where one of the comma-separated members of `name`'s values is `token`, without case.
    pub fn has_token<'a>(&self, name: impl Into<Name<'a>>, token: &[u8]) -> bool {
        self.get_all(name).any(|value| tokens(value).any(|member| member.eq_ignore_ascii_case(token)))
    }

    /// All fields in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Field<'_>> + ExactSizeIterator + '_ {
        self.list.iter().map(|entry| self.field(entry))
    }

    /// Adds a line at the end. CR, LF and NUL in the value become spaces (RFC 9110 5.5), because a line that ends early
    /// is how responses are split; a name that isn't a token (RFC 9110 5.1) adds nothing.
    pub fn append<'a>(&mut self, name: impl Into<Name<'a>>, value: &[u8]) {
        if let Some((known, name)) = self.spell(name.into()) {
            let value = self.push_value(value);
            self.list.push(Entry { known, name, value });
        }
    }

    /// Replaces all lines of `name` by one, at the place of the first; adds it where there was none.
    /// The spelling of a line that was there is kept.
    pub fn set<'a>(&mut self, name: impl Into<Name<'a>>, value: &[u8]) {
        let name = name.into();
        let value = self.push_value(value);
        self.set_span(name, value);
    }

    /// [`Fields::set`] with a value that is formatted in place.
    pub fn set_fmt<'a>(&mut self, name: impl Into<Name<'a>>, value: fmt::Arguments<'_>) {
        let name = name.into();
        let value = self.push_fmt(value);
        self.set_span(name, value);
    }

    /// Removes all lines of `name`; true where there was one.
    pub fn remove<'a>(&mut self, name: impl Into<Name<'a>>) -> bool {
        let (name, before) = (name.into(), self.list.len());
        let Self { text, list } = self;
        list.retain(|entry| !entry.is(name, text));
        list.len() != before
    }

    /// Keeps the lines for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let Self { text, list } = self;
        list.retain(|entry| keep(field(text, entry)));
    }

    /// All text, of which fields are ranges.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// All fields in order, with the ranges of their values in [`Fields::text`].
    pub(super) fn iter_ranges(&self) -> impl Iterator<Item = (Field<'_>, std::ops::Range<usize>)> + '_ {
        self.list.iter().map(|entry| {
            let start = entry.value.start as usize;
            (self.field(entry), start..start + entry.value.of(&self.text).len())
        })
    }

    /// Takes over a block of text whose fields follow through [`Fields::adopt_field`]. For parsers, on an empty list.
    pub(super) fn adopt_text(&mut self, block: &[u8]) {
        debug_assert!(self.list.is_empty());
        self.text.clear();
        self.text.extend_from_slice(block);
    }

    /// Adds a field whose name and value lie in the adopted block and were checked by the parser.
    pub(super) fn adopt_field(&mut self, known: Option<Known>, name: Span, value: Span) {
        self.list.push(Entry { known, name, value });
    }

    fn field<'s>(&'s self, entry: &Entry) -> Field<'s> {
        field(&self.text, entry)
    }

    fn spell(&mut self, name: Name<'_>) -> Option<(Option<Known>, Span)> {
        match name {
            Name::Known(known) => Some((Some(known), Span::default())),
            Name::Other(bytes) if is_token(bytes) => Some((None, push(&mut self.text, bytes))),
            Name::Other(_) => None,
        }
    }

    fn push_value(&mut self, value: &[u8]) -> Span {
        let span = push(&mut self.text, value);
        self.clean(span.start as usize);
        span
    }

    fn push_fmt(&mut self, value: fmt::Arguments<'_>) -> Span {
        struct Sink<'a>(&'a mut Vec<u8>);
        impl fmt::Write for Sink<'_> {
            fn write_str(&mut self, s: &str) -> fmt::Result {
                self.0.extend_from_slice(s.as_bytes());
                Ok(())
            }
        }
        let start = self.text.len();
        // A Display that fails leaves what it wrote before; writing into a Vec never fails.
        let _ = Sink(&mut self.text).write_fmt(value);
        self.clean(start);
        Span::new(start, self.text.len() - start)
    }

    fn clean(&mut self, from: usize) {
        for byte in &mut self.text[from..] {
            if matches!(*byte, b'\r' | b'\n' | 0) {
                *byte = b' ';
            }
        }
    }

    fn set_span(&mut self, name: Name<'_>, value: Span) {
        let Some(first) = self.list.iter().position(|entry| entry.is(name, &self.text)) else {
            if let Some((known, name)) = self.spell(name) {
                self.list.push(Entry { known, name, value });
            }
            return;
        };
        self.list[first].value = value;
        let Self { text, list } = self;
        let mut at = 0;
        list.retain(|entry| {
            at += 1;
            at <= first + 1 || !entry.is(name, text)
        });
    }
}

fn field<'t>(text: &'t [u8], entry: &Entry) -> Field<'t> {
    let name = match entry.known {
        Some(known) if entry.name == Span::default() => known.as_str().as_bytes(),
        _ => entry.name.of(text),
    };
    Field { known: entry.known, name, value: entry.value.of(text) }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.iter()
                    .map(|field| (String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value))),
            )
            .finish()
    }
}

impl PartialEq for Fields {
    /// Same lines in the same order; names without case.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self
                .iter()
                .zip(other.iter())
                .all(|(a, b)| a.name.eq_ignore_ascii_case(b.name) && a.value == b.value)
    }
}

/// The members of a comma-separated list, trimmed; empty members are left out (RFC 9110 5.6.1).
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// True where `bytes` is a token (RFC 9110 5.6.2): what a method or header name may be.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| TOKEN[usize::from(*byte)])
}

static TOKEN: [bool; 256] = alphanumerics_and(b"!#$%&'*+-.^_`|~");

/// Which bytes are ASCII letters, digits or one of `marks`.
pub(super) const fn alphanumerics_and(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.append(*name, value.as_bytes());
        }
        fields
    }

    #[test]
    fn lookup_ignores_case_and_keeps_order() {
        let fields = of(&[("X-Foo", "1"), ("accept", "a"), ("x-foo", "2")]);
        assert_eq!(fields.get("x-FOO"), Some(&b"1"[..]));
        assert_eq!(fields.get_all("x-foo").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(fields.get(Known::Accept), Some(&b"a"[..]));
        assert_eq!(fields.get("accept-"), None);
        assert_eq!(fields.iter().map(|f| f.name).collect::<Vec<_>>(), [&b"X-Foo"[..], b"accept", b"x-foo"]);
    }

    #[test]
    fn set_replaces_at_the_first_place_and_drops_the_others() {
        let mut fields = of(&[("a", "1"), ("B", "2"), ("a", "3"), ("c", "4")]);
        fields.set("A", b"9");
        assert_eq!(fields, of(&[("a", "9"), ("b", "2"), ("c", "4")]));
        fields.set(Known::Server, b"s");
        fields.set_fmt(Known::Server, format_args!("{}-{}", 1, 2));
        assert_eq!(fields, of(&[("a", "9"), ("b", "2"), ("c", "4"), ("server", "1-2")]));
        assert!(fields.remove("a") && !fields.remove("a"));
        fields.retain(|field| field.value != b"4");
        assert_eq!(fields, of(&[("b", "2"), ("server", "1-2")]));
    }

    #[test]
    fn a_line_cannot_be_split_from_within() {
        let mut fields = of(&[("a", "x\r\ny\0z")]);
        assert_eq!(fields.get("a"), Some(&b"x  y z"[..]));
        fields.append("bad name", b"1");
        fields.append("", b"1");
        fields.append("a:b", b"1");
        fields.set_fmt("c", format_args!("1\n2"));
        assert_eq!(fields, of(&[("a", "x  y z"), ("c", "1 2")]));
    }

    #[test]
    fn tokens_of_a_list() {
        let fields = of(&[("connection", "close ,, X-Foo"), ("connection", "te")]);
        assert!(fields.has_token(Known::Connection, b"CLOSE"));
        assert!(fields.has_token(Known::Connection, b"te"));
        assert!(!fields.has_token(Known::Connection, b"clo"));
    }

    #[test]
    fn an_entry_stays_small() {
        assert!(size_of::<Entry>() <= 20);
    }
}
