//! RE2 patterns, as Envoy and Istio mean them, on the `regex` crate.
//!
//! Both engines run in linear time and share most of their syntax; this module translates the rest and refuses what has no
//! equivalent, with a text that names it. Rules: values are bytes; `\d`, `\w`, `\s`, `\b` and `(?i)` are ASCII as in RE2;
//! inside brackets `[`, `&&`, `--` and `~~` are literal; repetition is capped at 1000; the compiled program has a size limit.
//! One wanted difference: `.` and negated brackets take one byte, not one code point, so they also match bytes that aren't UTF-8.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::CharIndices;

use regex::bytes::{Regex, RegexBuilder};

/// Bytes that one compiled pattern may take (Envoy refuses programs of more than 100 "units" by default, which is less).
const SIZE_LIMIT: usize = 1024 * 1024;

/// RE2's limit of `{n,m}`.
const MAX_REPETITION: u32 = 1000;

/// Why a pattern or a substitution was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// Valid RE2 has no such thing.
    #[error("regular expression `{pattern}`: {reason} at byte {at}")]
    Syntax {
        /// The pattern as given.
        pattern: String,
        /// What is wrong.
        reason: String,
        /// Where.
        at: usize,
    },
    /// The engine refused it.
    #[error("regular expression `{pattern}`: {reason}")]
    Engine {
        /// The pattern as given.
        pattern: String,
        /// The engine's text on one line.
        reason: String,
    },
    /// A substitution that RE2 refuses.
    #[error("substitution `{substitution}`: {reason}")]
    Substitution {
        /// The substitution as given.
        substitution: String,
        /// What is wrong.
        reason: String,
    },
}

/// A pattern that must match the whole value (`StringMatch.safe_regex`, path and header conditions).
pub fn full_match(pattern: &str) -> Result<Regex, RegexError> {
    build(pattern, &format!(r"\A(?:{})\z", translate(pattern)?))
}

/// A pattern whose matches anywhere in the value are replaced (`RegexMatchAndSubstitute`).
pub fn search(pattern: &str) -> Result<Regex, RegexError> {
    build(pattern, &translate(pattern)?)
}

/// A substitution for [`search`]: RE2's `\1` becomes the engine's `${1}`, and `$` is literal.
pub fn substitution(text: &str, regex: &Regex) -> Result<Box<[u8]>, RegexError> {
    let refuse =
        |reason: &str| RegexError::Substitution { substitution: text.to_owned(), reason: reason.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group >= regex.captures_len() {
                        return Err(refuse(&format!("there is no group {group} in the pattern")));
                    }
                    let _ = write!(out, "${{{group}}}");
                }
                _ => return Err(refuse("a backslash must be followed by a digit or a backslash")),
            },
            other => out.push(other),
        }
    }
    Ok(out.into_bytes().into())
}

fn build(given: &str, translated: &str) -> Result<Regex, RegexError> {
    RegexBuilder::new(translated)
        .unicode(false)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(SIZE_LIMIT)
        .build()
        .map_err(|error| RegexError::Engine {
            pattern: given.to_owned(),
            reason: last_line(&error.to_string()),
        })
}

/// The engine draws its syntax errors over several lines; the last one says what it is.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or("refused").trim().trim_start_matches("error: ").to_owned()
}

fn translate(pattern: &str) -> Result<String, RegexError> {
    let mut translator = Translator {
        pattern,
        chars: pattern.char_indices().peekable(),
        out: String::with_capacity(pattern.len() + 8),
    };
    translator.run()?;
    Ok(translator.out)
}

/// One walk over a pattern.
struct Translator<'a> {
    pattern: &'a str,
    chars: Peekable<CharIndices<'a>>,
    out: String,
}

/// One item of a bracket expression.
enum ClassItem {
    /// One code point, which may begin or end a range.
    Char(char),
    /// A ready piece for the engine, e.g. `[:alpha:]`; true where it needs Unicode tables.
    Set(String, bool),
}

impl<'a> Translator<'a> {
    fn run(&mut self) -> Result<(), RegexError> {
        while let Some((at, c)) = self.chars.next() {
            match c {
                '\\' => self.escape(at)?,
                '[' => self.class(at)?,
                '{' => self.brace(at)?,
                '(' => self.group(at)?,
                other => self.out.push(other),
            }
        }
        Ok(())
    }

    fn refuse(&self, at: usize, reason: impl Into<String>) -> RegexError {
        RegexError::Syntax { pattern: self.pattern.to_owned(), reason: reason.into(), at }
    }

    fn rest(&mut self) -> &'a str {
        match self.chars.peek() {
            Some((at, _)) => &self.pattern[*at..],
            None => "",
        }
    }

    fn skip(&mut self, bytes: usize) {
        let Some((start, _)) = self.chars.peek().copied() else { return };
        while self.chars.next_if(|(at, _)| *at < start + bytes).is_some() {}
    }

    fn escape(&mut self, at: usize) -> Result<(), RegexError> {
        let Some(&(_, c)) = self.chars.peek() else { return Err(self.refuse(at, "trailing backslash")) };
        match c {
            'Q' => {
                self.skip(1);
                let rest = self.rest();
                let literal = rest.split(r"\E").next().unwrap_or(rest);
                self.out.push_str(&regex::escape(literal));
                self.skip(literal.len());
                if self.rest().starts_with(r"\E") {
                    self.skip(2);
                }
            }
            'C' => {
                self.skip(1);
                self.out.push_str("(?s:.)");
            }
            'A' | 'z' | 'b' | 'B' => {
                self.skip(1);
                self.out.push('\\');
                self.out.push(c);
            }
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => {
                self.skip(1);
                self.out.push_str(perl_class(c));
            }
            'p' | 'P' => {
                let set = self.unicode_class(at)?;
                let _ = write!(self.out, "(?u:{set})");
            }
            _ => {
                let literal = self.escaped_char(at)?;
                push_char(&mut self.out, literal);
            }
        }
        Ok(())
    }

    /// `\pN` or `\p{Name}`, standing on the `p`.
    fn unicode_class(&mut self, at: usize) -> Result<String, RegexError> {
        let rest = self.rest();
        let length = match rest.as_bytes().get(1) {
            Some(b'{') => rest.find('}').map(|end| end + 1),
            Some(_) => rest[1..].chars().next().map(|c| 1 + c.len_utf8()),
            None => None,
        };
        let Some(length) = length else { return Err(self.refuse(at, r"incomplete \p")) };
        let text = format!(r"\{}", &rest[..length]);
        self.skip(length);
        Ok(text)
    }

    /// An escape that stands for one code point, standing on the character after the backslash.
    fn escaped_char(&mut self, at: usize) -> Result<char, RegexError> {
        let Some((_, c)) = self.chars.next() else { return Err(self.refuse(at, "trailing backslash")) };
        match c {
            'a' => Ok('\x07'),
            'f' => Ok('\x0c'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'v' => Ok('\x0b'),
            'x' => self.hex(at),
            '0'..='7' => self.octal(at, c),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
            c => Err(self.refuse(at, format!(r"\{c} is no escape of RE2"))),
        }
    }

    fn hex(&mut self, at: usize) -> Result<char, RegexError> {
        let rest = self.rest();
        let (digits, length) = if let Some(braced) = rest.strip_prefix('{') {
            let end = braced.find('}').ok_or_else(|| self.refuse(at, r"\x{ without }"))?;
            (&braced[..end], end + 2)
        } else {
            (rest.get(..2).ok_or_else(|| self.refuse(at, r"\x needs two digits"))?, 2)
        };
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let value = plain.then(|| u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)).flatten();
        let value = value.ok_or_else(|| self.refuse(at, r"\x is not a code point"))?;
        self.skip(length);
        Ok(value)
    }

    /// Up to three octal digits; a single digit other than 0 would be a back-reference, which RE2 has not.
    fn octal(&mut self, at: usize, first: char) -> Result<char, RegexError> {
        let mut value = first as u32 - '0' as u32;
        let mut digits = 1;
        while digits < 3 {
            let Some((_, digit)) = self.chars.next_if(|(_, c)| ('0'..='7').contains(c)) else { break };
            value = value * 8 + (digit as u32 - '0' as u32);
            digits += 1;
        }
        if digits == 1 && first != '0' {
            return Err(self.refuse(at, "back-references are not supported"));
        }
        char::from_u32(value).ok_or_else(|| self.refuse(at, "octal escape is not a code point"))
    }

    /// `{n}`, `{n,}`, `{n,m}` repeat; every other `{` is literal in RE2.
    fn brace(&mut self, at: usize) -> Result<(), RegexError> {
        let rest = self.rest();
        let Some(body) = rest.find('}').map(|end| &rest[..end]) else {
            self.out.push_str(r"\{");
            return Ok(());
        };
        let (low, high) = body.split_once(',').unwrap_or((body, ""));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(low) || !(high.is_empty() || is_number(high)) {
            self.out.push_str(r"\{");
            return Ok(());
        }
        for number in [low, high].into_iter().filter(|number| !number.is_empty()) {
            if number.parse::<u32>().map_or(true, |number| number > MAX_REPETITION) {
                return Err(self.refuse(at, format!("repetition of more than {MAX_REPETITION}")));
            }
        }
        self.out.push('{');
        self.out.push_str(body);
        self.out.push('}');
        self.skip(body.len() + 1);
        Ok(())
    }

    /// Groups are the same in both; only the flags of RE2 are let through.
    fn group(&mut self, at: usize) -> Result<(), RegexError> {
        self.out.push('(');
        let rest = self.rest();
        let Some(flags) = rest.strip_prefix('?') else { return Ok(()) };
        if flags.starts_with("P<") || flags.starts_with('<') {
            return Ok(());
        }
        let end = flags.find([':', ')']).ok_or_else(|| self.refuse(at, "unclosed group"))?;
        if !flags[..end].bytes().all(|flag| b"imsU-".contains(&flag)) {
            return Err(self.refuse(at, format!("`(?{}` is not supported by RE2", &flags[..end])));
        }
        Ok(())
    }

    fn class(&mut self, at: usize) -> Result<(), RegexError> {
        let negated = self.chars.next_if(|(_, c)| *c == '^').is_some();
        let mut body = String::new();
        let mut unicode = false;
        let mut first = true;
        loop {
            let Some(&(here, c)) = self.chars.peek() else { return Err(self.refuse(at, "missing ]")) };
            if c == ']' && !first {
                self.skip(1);
                break;
            }
            first = false;
            match self.class_item(here)? {
                ClassItem::Set(text, needs_unicode) => {
                    body.push_str(&text);
                    unicode |= needs_unicode;
                }
                ClassItem::Char(low) => {
                    push_char_plain(&mut body, low);
                    unicode |= !low.is_ascii();
                    let rest = self.rest();
                    if rest.starts_with('-') && !rest.starts_with("-]") {
                        self.skip(1);
                        let ClassItem::Char(high) = self.class_item(here)? else {
                            return Err(self.refuse(here, "a range must end with a character"));
                        };
                        body.push('-');
                        push_char_plain(&mut body, high);
                        unicode |= !high.is_ascii();
                    }
                }
            }
        }
        let caret = if negated { "^" } else { "" };
        let _ = if unicode {
            write!(self.out, "(?u:[{caret}{body}])")
        } else {
            write!(self.out, "[{caret}{body}]")
        };
        Ok(())
    }

    fn class_item(&mut self, at: usize) -> Result<ClassItem, RegexError> {
        let Some((_, c)) = self.chars.next() else { return Err(self.refuse(at, "missing ]")) };
        if c == '[' && self.rest().starts_with(':') {
            let rest = self.rest();
            let end = rest.find(":]").ok_or_else(|| self.refuse(at, "missing :]"))?;
            let text = format!("[{}:]", &rest[..end]);
            self.skip(end + 2);
            return Ok(ClassItem::Set(text, false));
        }
        if c != '\\' {
            return Ok(ClassItem::Char(c));
        }
        match self.chars.peek().map(|(_, c)| *c) {
            Some(c @ ('d' | 'D' | 'w' | 'W' | 's' | 'S')) => {
                self.skip(1);
                Ok(ClassItem::Set(perl_class(c).to_owned(), false))
            }
            Some('p' | 'P') => Ok(ClassItem::Set(self.unicode_class(at)?, true)),
            _ => Ok(ClassItem::Char(self.escaped_char(at)?)),
        }
    }
}

/// RE2's ASCII classes spelt out, so that they mean the same where Unicode is on (`\s` has no vertical tab there).
fn perl_class(letter: char) -> &'static str {
    match letter {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => r"[\t\n\f\r\x20]",
        _ => r"[^\t\n\f\r\x20]",
    }
}

/// One code point outside brackets.
fn push_char(out: &mut String, c: char) {
    if c.is_ascii() {
        push_char_plain(out, c);
    } else {
        let _ = write!(out, "(?u:{c})");
    }
}

/// One code point as the engine can't misread it, inside or outside brackets.
fn push_char_plain(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || !c.is_ascii() {
        out.push(c);
    } else {
        let _ = write!(out, r"\x{:02X}", c as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_whole_value() {
        let cases: &[(&str, &str, bool)] = &[
            ("a|ab", "ab", true),
            ("foo", "foobar", false),
            ("foo.*", "foobar", true),
            ("^foo$", "foo", true),
            ("(?i)FOO", "foo", true),
            ("/v[0-9]+/.*", "/v12/x", true),
            ("", "", true),
            ("", "x", false),
        ];
        for (pattern, value, expected) in cases {
            let regex = full_match(pattern).unwrap();
            assert_eq!(regex.is_match(value.as_bytes()), *expected, "{pattern} on {value}");
        }
    }

    #[test]
    fn translates_what_differs_from_re2() {
        let cases: &[(&str, &[u8], bool)] = &[
            (r"\Qa.b*\E+", b"a.b*", true),
            (r"\Qa.b\E", b"axb", false),
            (r"\Qopen", b"open", true),
            (r"\101\x42\x{43}", b"ABC", true),
            (r"\0", b"\0", true),
            (r"a\C", b"a\xff", true),
            (r"\<a\>", b"<a>", true),
            (r"[a[b]+", b"a[b", true),
            (r"[a&&b]+", b"a&b", true),
            (r"[a~~b]+", b"a~b", true),
            (r"[]a]+", b"]a", true),
            (r"[^]a]", b"]", false),
            (r"[--/]+", b"-./", true),
            (r"[a\-z]+", b"a-z", true),
            (r"[a\-z]", b"b", false),
            (r"[a-]+", b"a-", true),
            (r"[[:alpha:][:digit:]]+", b"a1", true),
            (r"[\d.]+", b"1.2", true),
            (r"\d", "\u{0663}".as_bytes(), false),
            (r"\w+", "é".as_bytes(), false),
            (r"\s", b"\x0b", false),
            (r"é+", "éé".as_bytes(), true),
            (r"[é]", "é".as_bytes(), true),
            (r"\pL", "é".as_bytes(), true),
            (r"[\p{Greek}\d]+", "λ1".as_bytes(), true),
            (r"\x{e9}", "é".as_bytes(), true),
            (r"a{2}", b"aa", true),
            (r"a{,2}", b"a{,2}", true),
            (r"a{", b"a{", true),
            (r"a{1,1000}", b"aaa", true),
            (r".", b"\xff", true),
            (r"(?P<name>a)(?<other>b)(?:c)", b"abc", true),
            (r"(?i:A)b", b"ab", true),
            (r"(?U)a+", b"aa", true),
            (r"\.\*\_\-\/", b".*_-/", true),
        ];
        for (pattern, value, expected) in cases {
            let regex = full_match(pattern).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(regex.is_match(value), *expected, "{pattern} on {}", value.escape_ascii());
        }
    }

    #[test]
    fn refuses_what_re2_refuses() {
        for pattern in [
            r"(",
            r"[a",
            r"a)",
            r"\1",
            r"(a)\1",
            r"(?=a)",
            r"(?x)a",
            r"(?u)a",
            r"\Z",
            r"\y",
            r"a{1001}",
            r"a{2,1001}",
            r"\xZZ",
            r"\x{110000}",
            r"\",
            r"[b-a]",
            r"[a-\d]",
            r"\p",
            r"\p{Nonsense}",
            r"(a{1000}){1000}",
            r"\é",
            r"\x",
            r"[\b]",
        ] {
            assert!(full_match(pattern).is_err(), "{pattern} was accepted");
        }
    }

    #[test]
    fn errors_say_what_and_where() {
        let text = full_match(r"ab\y").unwrap_err().to_string();
        assert_eq!(text, r"regular expression `ab\y`: \y is no escape of RE2 at byte 2");
        let text = full_match("a)").unwrap_err().to_string();
        assert!(text.contains("unopened group"), "{text}");
    }

    #[test]
    fn substitutes_like_re2() {
        let cases: &[(&str, &str, &str, &str)] = &[
            (r"^/v(\d+)/(.*)$", r"/\2/\1", "/v2/users", "/users/2"),
            ("a", "$1", "bab", "b$1b"),
            ("o", "0", "foo", "f00"),
            ("b", r"[\0]\\", "abc", r"a[b]\c"),
            (r"(a)(b)?", r"\1-\2", "a", "a-"),
            (r"(\d)", r"\10", "7", "70"),
        ];
        for (pattern, text, value, expected) in cases {
            let regex = search(pattern).unwrap();
            let replacement = substitution(text, &regex).unwrap();
            let result = regex.replace_all(value.as_bytes(), &*replacement);
            assert_eq!(result, expected.as_bytes(), "{pattern} {text} on {value}");
        }
        let regex = search("a(b)").unwrap();
        assert!(substitution(r"\2", &regex).is_err());
        assert!(substitution(r"\x", &regex).is_err());
        assert!(substitution("\\", &regex).is_err());
    }

    proptest::proptest! {
        /// Whatever is given, translation ends in a regex or an error, and never in a panic.
        #[test]
        fn never_panics(pattern in r"[\[\]\\(){}?*+^$|.:,<>PQEpdxéab0-9&~-]{0,24}") {
            let _ = full_match(&pattern);
        }
    }
}
