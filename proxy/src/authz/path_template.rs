//! Conditions on the segments of a path: `/a/*/c`, `/a/**`, `/a/**/c`.
//!
//! `*` is one whole segment, of at least one byte; `**` is the last operator and whatever follows, also nothing. Envoy takes only the
//! characters of RFC 3986 for either, so that a path with another one is matched by no template; here a segment is what lies
//! between two slashes, because a rule that denies must not be passed by by an odd character.

/// A path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTemplate {
    segments: Box<[Segment]>,
    /// It has a `**` after these, and what follows must end so.
    tail: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Any,
}

/// Characters of a literal, beside letters and digits.
const LITERAL: &str = "-._~%!$&'()+,;:@=";

impl PathTemplate {
    /// Reads a template; the error is for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else { return Err("must begin with `/`".to_owned()) };
        let parts: Vec<&str> = rest.split('/').collect();
        let last = parts.len() - 1;
        let mut segments = Vec::with_capacity(parts.len());
        let mut tail: Option<Vec<u8>> = None;
        for (index, part) in parts.into_iter().enumerate() {
            match (part, &mut tail) {
                ("*" | "**", Some(_)) => return Err("`**` must be the last operator".to_owned()),
                ("*", None) => segments.push(Segment::Any),
                ("**", None) => tail = Some(Vec::new()),
                // Only the end may be empty: `/a/`.
                ("", _) if index != last => return Err("has an empty segment".to_owned()),
                (part, tail) => {
                    literal(part)?;
                    match tail {
                        Some(tail) => tail.extend([b"/", part.as_bytes()].concat()),
                        None => segments.push(Segment::Literal(part.as_bytes().into())),
                    }
                }
            }
        }
        Ok(Self { segments: segments.into(), tail: tail.map(Into::into) })
    }

    /// True where a path without query is so.
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(mut rest) = path.strip_prefix(b"/") else { return false };
        for (index, segment) in self.segments.iter().enumerate() {
            let ends_here = self.tail.is_none() && index + 1 == self.segments.len();
            let part = match (rest.iter().position(|byte| *byte == b'/'), ends_here) {
                (None, true) => std::mem::take(&mut rest),
                (Some(slash), false) => {
                    let part = &rest[..slash];
                    rest = &rest[slash + 1..];
                    part
                }
                _ => return false,
            };
            if !segment.is(part) {
                return false;
            }
        }
        self.tail.as_ref().is_none_or(|tail| rest.ends_with(tail))
    }
}

fn literal(part: &str) -> Result<(), String> {
    match part.chars().find(|c| !c.is_ascii_alphanumeric() && !LITERAL.contains(*c)) {
        None => Ok(()),
        Some(odd) => Err(format!("segment `{part}` has `{odd}`, which no literal segment has")),
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
            ("/a/**/c", &["/a/b/c", "/a/b/d/c", "/a//c"], &["/a/c", "/a/b/c/d", "/b/b/c", "/a/bc"]),
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
            ("/**/*", "`**` must be the last operator"),
            ("/**/**", "`**` must be the last operator"),
            ("/a*/b", "segment `a*` has `*`, which no literal segment has"),
            ("/{a}/b", "segment `{a}` has `{`, which no literal segment has"),
            ("/a//b", "has an empty segment"),
            ("/a//**", "has an empty segment"),
            ("/ä/b", "segment `ä` has `ä`, which no literal segment has"),
        ] {
            assert_eq!(PathTemplate::parse(template), Err(reason.to_owned()), "{template}");
        }
    }
}
