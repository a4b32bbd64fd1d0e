//! Conditions on the segments of a path: `/a/*/c`, `/a/**`.
//!
//! `*` is one whole segment, of at least one byte; `**` comes last and is whatever follows, also nothing. Envoy takes only the
//! characters of RFC 3986 for either, so that a path with another one is matched by no template; here a segment is what lies
//! between two slashes, because a rule that denies must not be passed by by an odd character.

/// A path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTemplate {
    segments: Box<[Segment]>,
    /// It ends in `**`.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Any,
}

/// Characters of a literal, beside letters and digits.
const LITERAL: &[u8] = b"-._~%!$&'()+,;:@=";

impl PathTemplate {
    /// Reads a template; the error is for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else { return Err("must begin with `/`".to_owned()) };
        let mut parts: Vec<&str> = rest.split('/').collect();
        let open = parts.last() == Some(&"**");
        if open {
            parts.pop();
        }
        let last = parts.len().saturating_sub(1);
        let segment = |(index, part): (usize, &&str)| match *part {
            "*" => Ok(Segment::Any),
            "**" => Err("`**` must come last".to_owned()),
            // Only the end may be empty: `/a/`.
            "" if index != last || open => Err("has an empty segment".to_owned()),
            part => {
                match part.bytes().find(|byte| !byte.is_ascii_alphanumeric() && !LITERAL.contains(byte)) {
                    None => Ok(Segment::Literal(part.as_bytes().into())),
                    Some(byte) => Err(format!(
                        "segment `{part}` has `{}`, which no literal segment has",
                        char::from(byte).escape_default()
                    )),
                }
            }
        };
        let segments: Result<Box<[Segment]>, String> = parts.iter().enumerate().map(segment).collect();
        Ok(Self { segments: segments?, open })
    }

    /// True where a path without query is so.
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(b"/") else { return false };
        let mut parts = rest.split(|byte| *byte == b'/');
        let fit = self.segments.iter().all(|segment| parts.next().is_some_and(|part| segment.is(part)));
        fit && parts.next().is_some() == self.open
    }
}

impl Segment {
    fn is(&self, part: &[u8]) -> bool {
        match self {
            Self::Literal(literal) => **literal == *part,
            Self::Any => !part.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        for (template, matched, others) in [
            (
                "/a/*/c",
                &["/a/b/c", "/a/%2f/c", "/a/b*b/c"][..],
                &["/a/b/d/c", "/a//c", "/a/b/c/", "/a/c"][..],
            ),
            ("/a/**", &["/a/", "/a/b", "/a/b/c", "/a//"], &["/a", "/", "/ab/c"]),
            ("/**", &["/", "/a", "/a/b"], &["", "*"]),
            ("/*", &["/a"], &["/", "/a/", "/a/b"]),
            ("/a/*/**", &["/a/b/", "/a/b/c/d"], &["/a/b", "/a//", "/a/"]),
            ("/a/b/", &["/a/b/"], &["/a/b", "/a/b/c"]),
            ("/", &["/"], &["/a", ""]),
        ] {
            let parsed = PathTemplate::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
            for path in matched {
                assert!(parsed.matches(path.as_bytes()), "{template} should match {path}");
            }
            for path in others {
                assert!(!parsed.matches(path.as_bytes()), "{template} should not match {path}");
            }
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for (template, reason) in [
            ("", "must begin with `/`"),
            ("a/*", "must begin with `/`"),
            ("/**/a", "`**` must come last"),
            ("/a*/b", "segment `a*` has `*`, which no literal segment has"),
            ("/{a}/b", "segment `{a}` has `{`, which no literal segment has"),
            ("/a//b", "has an empty segment"),
            ("/a//**", "has an empty segment"),
        ] {
            assert_eq!(PathTemplate::parse(template), Err(reason.to_owned()), "{template}");
        }
    }
}
