//! Path normalisation before matching, in Envoy's order: fragment, escaped slashes, RFC 3986, slashes.
//!
//! What is matched is what is forwarded, so that no rule can be walked around by another spelling of a path.
//! Invariants: the query is never touched; a normalised path comes out unchanged; what needs no change is not copied.

use std::borrow::Cow;

use crate::config::listener::{EscapedSlashes, Normalize};

/// What to do with a request, by its path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized<'a> {
    /// Go on with this path (with query).
    Path(Cow<'a, [u8]>),
    /// Send the client to this path (307).
    Redirect(Vec<u8>),
    /// 400; the text is the response code detail.
    Refused(&'static str),
}

/// Applies `rules` to the path (with query) of a request.
pub fn normalize(target: &[u8], rules: Normalize) -> Normalized<'_> {
    let target = without_fragment(target);
    if target.first() != Some(&b'/') {
        return Normalized::Path(Cow::Borrowed(target));
    }
    let end = target.iter().position(|b| *b == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if is_plain(path) {
        return Normalized::Path(Cow::Borrowed(target));
    }
    let mut path = Cow::Borrowed(path);
    let mut redirect = false;
    if rules.escaped_slashes != EscapedSlashes::Keep
        && let Some(decoded) = decode_slashes(&path)
    {
        match rules.escaped_slashes {
            EscapedSlashes::Reject => return Normalized::Refused("path_normalization_failed"),
            EscapedSlashes::Redirect => redirect = true,
            EscapedSlashes::Decode | EscapedSlashes::Keep => {}
        }
        path = Cow::Owned(decoded);
    }
    if rules.path {
        match canonical(&path) {
            Some(canonical) => path = Cow::Owned(canonical),
            None => return Normalized::Refused("path_normalization_failed"),
        }
    }
    if rules.merge_slashes && path.windows(2).any(|pair| pair == b"//") {
        path = Cow::Owned(merge_slashes(&path));
    }
    let Cow::Owned(mut whole) = path else { return Normalized::Path(Cow::Borrowed(target)) };
    whole.extend_from_slice(query);
    if redirect { Normalized::Redirect(whole) } else { Normalized::Path(Cow::Owned(whole)) }
}

/// The part before `#`, which clients should not have sent.
fn without_fragment(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|b| *b == b'#').unwrap_or(target.len());
    &target[..end]
}

/// True where no rule could change anything: the common case costs one pass.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        if must_escape(byte)
            || matches!(byte, b'%' | b'\\')
            || (before == b'/' && matches!(byte, b'/' | b'.'))
        {
            return false;
        }
        before = byte;
    }
    true
}

/// `%2F` and `%5C` decoded; `None` where there are none.
fn decode_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    let mut found = false;
    while at < path.len() {
        match escaped(path, at) {
            Some(byte @ (b'/' | b'\\')) => {
                out.push(byte);
                at += 3;
                found = true;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    found.then_some(out)
}

/// RFC 3986 normalisation as Envoy's URL library does it: backslashes become slashes, escaped unreserved characters are
/// decoded, characters that may not stand in a path are escaped, dot segments are resolved. `None` for `%00` and bare NUL.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(path.len() + 8);
    let mut at = 0;
    while at < path.len() {
        match (path[at], escaped(path, at)) {
            (0, _) | (_, Some(0)) => return None,
            (_, Some(byte)) if is_unreserved(byte) && !completes_escape(&plain, byte) => {
                plain.push(byte);
                at += 2;
            }
            (b'\\', _) => plain.push(b'/'),
            (byte, _) if must_escape(byte) => {
                plain.push(b'%');
                plain.push(HEX[usize::from(byte >> 4)]);
                plain.push(HEX[usize::from(byte & 15)]);
            }
            (byte, _) => plain.push(byte),
        }
        at += 1;
    }
    Some(resolve_dots(&plain))
}

/// True where `byte`, decoded, would turn a stray `%` before it into an escape: `%%32e` must not become `%2e`.
fn completes_escape(before: &[u8], byte: u8) -> bool {
    byte.is_ascii_hexdigit() && matches!(before, [.., b'%'] | [.., b'%', _])
}

fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The byte that `%XX` at `at` stands for.
fn escaped(path: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low, ..] = &path[at..] else { return None };
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// RFC 3986 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn must_escape(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f || matches!(byte, b'"' | b'<' | b'>' | b'`' | b'{' | b'}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Normalize =
        Normalize { path: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };

    fn path(target: &str, rules: Normalize) -> String {
        match normalize(target.as_bytes(), rules) {
            Normalized::Path(path) => String::from_utf8(path.into_owned()).unwrap(),
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn base_normalises_as_rfc_3986_says() {
        for (given, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/%61%2d%7e", "/a-~"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb%5c", "/a%2fb%5c"),
            ("/a\\..\\b", "/b"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/a%zz%", "/a%zz%"),
            ("/é", "/%C3%A9"),
            ("/a b", "/a%20b"),
            ("/%%32e%2%65/", "/%%32e%2%65/"),
            ("/...", "/..."),
            ("/.a/..b", "/.a/..b"),
            ("/a?x=/../%61", "/a?x=/../%61"),
            ("/a/../b?x", "/b?x"),
            ("/a#b", "/a"),
            ("/a?b#c?d", "/a?b"),
            ("*", "*"),
        ] {
            assert_eq!(path(given, BASE), expected, "{given}");
        }
    }

    #[test]
    fn rules_are_independent() {
        let none = Normalize::default();
        assert_eq!(path("/a/../b//%2f\\", none), "/a/../b//%2f\\");
        let merge = Normalize { merge_slashes: true, ..none };
        assert_eq!(path("/a///b/../c//", merge), "/a/b/../c/");
        let both = Normalize { merge_slashes: true, ..BASE };
        assert_eq!(path("//a//./b", both), "/a/b");
        let decode = Normalize { escaped_slashes: EscapedSlashes::Decode, ..both };
        assert_eq!(path("/a%2F..%5Cb%2fc", decode), "/b/c");
        assert_eq!(path("/a?b=%2F", decode), "/a?b=%2F");
    }

    #[test]
    fn escaped_slashes_can_be_refused_or_redirected() {
        let rules = |escaped_slashes| Normalize { escaped_slashes, ..BASE };
        let refused = normalize(b"/a%5cb", rules(EscapedSlashes::Reject));
        assert_eq!(refused, Normalized::Refused("path_normalization_failed"));
        let redirect = normalize(b"/a%2fb/../c?x", rules(EscapedSlashes::Redirect));
        assert_eq!(redirect, Normalized::Redirect(b"/a/c?x".to_vec()));
        assert_eq!(path("/ab/../c", rules(EscapedSlashes::Redirect)), "/c");
        assert_eq!(path("/ab/../c", rules(EscapedSlashes::Reject)), "/c");
    }

    #[test]
    fn nul_is_refused() {
        assert_eq!(normalize(b"/a%00", BASE), Normalized::Refused("path_normalization_failed"));
    }

    proptest::proptest! {
        /// Normalising twice is normalising once, and what comes out has no dot segment.
        #[test]
        fn is_idempotent(given in r"/([a.%23eEfF56cC/\\ ?b]|%2e|%2f|\.\.|//){0,12}") {
            let rules = Normalize { path: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Decode };
            let once = path(&given, rules);
            let bare = once.split('?').next().unwrap();
            proptest::prop_assert!(bare.split('/').all(|segment| segment != "." && segment != ".."), "{once}");
            proptest::prop_assert!(!bare.contains("//"));
            proptest::prop_assert_eq!(&path(&once, BASE), &once);
        }
    }
}
