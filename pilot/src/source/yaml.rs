//! YAML text to nodes that remember their lines.
//!
//! Scalars are read as kubectl reads them (YAML 1.1 words: `no` is false, `0755` is octal), and the text is kept, so that whoever
//! wants a string and finds a number can say so. Aliases are copied, within a budget; merge keys (`<<`) are followed.

use std::sync::Arc;

use hashbrown::HashMap;
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError};
use thiserror::Error;

/// More nodes than this in one file is an attack or a mistake.
const MAX_NODES: usize = 2_000_000;
/// Deeper nesting than this is refused.
const MAX_DEPTH: usize = 100;

/// A value with the line where it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// From 1.
    pub line: u32,
    /// What is there.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A boolean, with its text.
    Bool(bool, Arc<str>),
    /// A whole number, with its text.
    Int(i128, Arc<str>),
    /// Any other number, with its text.
    Float(f64, Arc<str>),
    /// Text.
    Text(Arc<str>),
    /// A list.
    Seq(Vec<Node>),
    /// A mapping, in the order written; keys may be there twice.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key's text.
    pub key: Arc<str>,
    /// The key's line.
    pub line: u32,
    /// The value.
    pub node: Node,
}

/// Why a text is no YAML.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct YamlError {
    /// From 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

impl Node {
    /// The value under `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| &*e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// The text, if this is text.
    pub fn text(&self) -> Option<&Arc<str>> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The elements, if this is a list.
    pub fn items(&self) -> &[Node] {
        if let Value::Seq(items) = &self.value { items } else { &[] }
    }

    /// Line of what `path` names (`spec.http[0].match`), or of the last part of it that is there.
    pub fn line_of(&self, path: &str) -> u32 {
        let mut line = self.line;
        let mut node = self;
        for part in path_parts(path) {
            let next = match (&node.value, part) {
                (Value::Map(entries), Part::Key(key)) => {
                    entries.iter().find(|e| *e.key == *key).map(|e| (e.line, &e.node))
                }
                (Value::Seq(items), Part::Index(at)) => items.get(at).map(|n| (n.line, n)),
                _ => None,
            };
            let Some(found) = next else { break };
            (line, node) = found;
        }
        line
    }

    /// What kind of value this is, for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(_, text) => format!("the boolean {text}"),
            Value::Int(_, text) | Value::Float(_, text) => format!("the number {text}"),
            Value::Text(text) => format!("the text {:?}", shorten(text)),
            Value::Seq(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.into()
    } else {
        text.chars().take(37).chain("...".chars()).collect()
    }
}

enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

/// Splits `a.b[1].c`, and `a["x.y"]` for keys that have dots or brackets themselves.
fn path_parts(path: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, tail) = quoted.split_once("\"]")?;
            rest = tail;
            return Some(Part::Key(key));
        }
        if let Some(bracket) = rest.strip_prefix('[') {
            let (index, tail) = bracket.split_once(']')?;
            rest = tail;
            return index.parse().ok().map(Part::Index);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(end);
        rest = tail;
        Some(Part::Key(key))
    })
}

/// Reads all documents of a text; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(..) => {
                reader.anchors.clear();
                let (event, line) = reader.next()?;
                let node = reader.node(event, line, 0)?;
                if node.value != Value::Null {
                    documents.push(node);
                }
            }
            Event::StreamStart | Event::DocumentEnd => {}
            other => return Err(YamlError { line, message: format!("unexpected {other:?}") }),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, serde_saphyr::granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    /// The next event that is not a comment.
    fn next(&mut self) -> Result<(Event<'a>, u32), YamlError> {
        loop {
            match self.parser.next_event() {
                None => return Ok((Event::StreamEnd, 0)),
                Some(Err(error)) => return Err(scan_error(&error)),
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok((event, span))) => return Ok((event, line_number(span.start.line()))),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, line: u32, depth: usize) -> Result<Node, YamlError> {
        self.spend(1, line)?;
        if depth > MAX_DEPTH {
            return Err(YamlError { line, message: format!("is nested deeper than {MAX_DEPTH} levels") });
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                (if plain { resolve(&text) } else { Value::Text(text.as_ref().into()) }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(anchor) => {
                let copy = self.anchors.get(&anchor).cloned();
                let copy =
                    copy.ok_or_else(|| YamlError { line, message: "an alias refers to itself".into() })?;
                self.spend(size(&copy), line)?;
                return Ok(Node { line, ..copy });
            }
            other => return Err(YamlError { line, message: format!("unexpected {other:?}") }),
        };
        let node = Node { line, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Seq(items)),
                (event, line) => items.push(self.node(event, line, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = match event {
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(YamlError { line, message: "a key must be a single word or text".into() }),
            };
            let (event, value_line) = self.next()?;
            let node = self.node(event, value_line, depth + 1)?;
            if key == "<<" {
                merged.extend(merge_source(node)?);
            } else {
                entries.push(Entry { key: key.into(), line, node });
            }
        }
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(Value::Map(entries))
    }

    fn spend(&mut self, nodes: usize, line: u32) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(YamlError {
                line,
                message: format!("has more than {MAX_NODES} values with its aliases"),
            });
        }
        Ok(())
    }
}

fn merge_source(node: Node) -> Result<Vec<Entry>, YamlError> {
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::Seq(items) => {
            let mut all = Vec::new();
            for item in items {
                all.extend(merge_source(item)?);
            }
            Ok(all)
        }
        _ => Err(YamlError { line: node.line, message: "<< takes a mapping or a list of mappings".into() }),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Seq(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|e| size(&e.node)).sum(),
        _ => 0,
    }
}

fn scan_error(error: &ScanError) -> YamlError {
    YamlError { line: line_number(error.marker().line()), message: error.info() }
}

fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// What a plain scalar is, in kubectl's eyes.
fn resolve(text: &str) -> Value {
    let kept = || Arc::from(text);
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true, kept());
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false, kept());
        }
        _ => {}
    }
    let starts_as_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    if !starts_as_number {
        return Value::Text(text.into());
    }
    if let Some(number) = integer(text) {
        return Value::Int(number, kept());
    }
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    let float_like =
        text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
    match text.parse::<f64>() {
        Ok(number) if digits && float_like => Value::Float(number, kept()),
        _ => Value::Text(text.into()),
    }
}

fn integer(text: &str) -> Option<i128> {
    let (negative, body) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let plain = body.replace('_', "");
    if plain.starts_with(['-', '+']) || !body.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number = match plain.get(..2) {
        Some("0x" | "0X") => i128::from_str_radix(&plain[2..], 16),
        Some("0o" | "0O") => i128::from_str_radix(&plain[2..], 8),
        Some("0b" | "0B") => i128::from_str_radix(&plain[2..], 2),
        Some(two) if two.starts_with('0') => i128::from_str_radix(&plain, 8),
        _ => plain.parse(),
    };
    number.ok().map(|n| if negative { -n } else { n })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Node {
        parse(text).unwrap().remove(0)
    }

    #[test]
    fn scalars_as_kubectl_reads_them() {
        let text = |t: &str| Value::Text(t.into());
        for (written, wanted) in [
            ("abc", text("abc")),
            ("'no'", text("no")),
            ("\"1\"", text("1")),
            ("no", Value::Bool(false, "no".into())),
            ("On", Value::Bool(true, "On".into())),
            ("y", text("y")),
            ("~", Value::Null),
            ("80", Value::Int(80, "80".into())),
            ("-1", Value::Int(-1, "-1".into())),
            ("0755", Value::Int(493, "0755".into())),
            ("0x1F", Value::Int(31, "0x1F".into())),
            ("1_000", Value::Int(1000, "1_000".into())),
            ("1.0", Value::Float(1.0, "1.0".into())),
            ("1e3", Value::Float(1000.0, "1e3".into())),
            ("10s", text("10s")),
            ("1.2.3.4", text("1.2.3.4")),
            ("-", text("-")),
            ("2024-01-02T03:04:05Z", text("2024-01-02T03:04:05Z")),
            ("0o9", text("0o9")),
            ("--5", text("--5")),
        ] {
            if written == "-" {
                assert_eq!(resolve(written), wanted);
                continue;
            }
            assert_eq!(one(&format!("a: {written}")).get("a").unwrap().value, wanted, "{written}");
        }
    }

    #[test]
    fn documents_lines_and_paths() {
        let text = "# head\na: 1\n---\n---\nb:\n  - c: x\n    d.e: y\n  - c:\n      f: z\n";
        let documents = parse(text).unwrap();
        assert_eq!(documents.len(), 2, "the empty document is left out");
        let node = &documents[1];
        for (path, line) in [
            ("", 5),
            ("b", 5),
            ("b[0]", 6),
            ("b[0].c", 6),
            ("b[0][\"d.e\"]", 7),
            ("b[1].c.f", 9),
            ("b[1].c.nope", 8),
            ("b[7]", 5),
        ] {
            assert_eq!(node.line_of(path), line, "{path}");
        }
    }

    #[test]
    fn aliases_and_merge_keys() {
        let node = one("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nlist: [*b]\n");
        let used = node.get("use").unwrap();
        assert_eq!(used.get("x").unwrap().value, Value::Int(1, "1".into()));
        assert_eq!(used.get("y").unwrap().value, Value::Int(3, "3".into()));
        assert_eq!(node.get("list").unwrap().items()[0].get("y").unwrap().value, Value::Int(2, "2".into()));
    }

    #[test]
    fn what_is_no_yaml_has_a_line() {
        for (text, line) in
            [("a: b\n  c: d\n", 2), ("a:\n\t- b\n", 2), ("a: [1, 2\n", 2), ("a: 'x\n", 2), ("x: *nope\n", 1)]
        {
            let error = parse(text).unwrap_err();
            assert!(error.line.abs_diff(line) <= 1, "{text:?}: {error:?}");
            assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn billion_laughs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{refs}]\n");
        }
        assert!(parse(&text).unwrap_err().message.contains("values"));
        let deep = "[".repeat(5000);
        assert!(parse(&deep).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-a-z0-9:\\[\\]{}&*<\"' \n|>#]{0,200}") {
            let _ = parse(&text);
        }
    }
}
