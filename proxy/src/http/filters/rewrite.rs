//! Rewrites of path and host before a request is forwarded.

use bytes::Bytes;
use regex::bytes::Regex;

use super::forwarded::append_listed;
use crate::config::route::{Forward, HostRewrite, PathMatch, PathRewrite, RouteMatch};
use crate::http::head::{Known, RequestHead};

/// Rewrites the path as the route says, and tells the original in `x-envoy-original-path`.
pub fn rewrite_path(forward: &Forward, matches: &RouteMatch, head: &mut RequestHead) {
    let new = match &forward.rewrite {
        PathRewrite::Keep => return,
        PathRewrite::Prefix(replacement) => {
            with_prefix(head.path(), matched_length(matches, head), replacement)
        }
        PathRewrite::Regex(regex, substitution) => with_regex(head.path(), regex, substitution),
    };
    let original = Bytes::copy_from_slice(head.path());
    head.fields.set(Known::XEnvoyOriginalPath, &original);
    head.set_path(&new);
}

/// Rewrites the host. `endpoint` is the name of the endpoint that was picked, for routes that take that. `weighted` is what
/// the chosen weighted cluster wants; the route's own rewrite goes before it.
pub fn rewrite_host(
    forward: &Forward,
    weighted: Option<&str>,
    endpoint: Option<&str>,
    head: &mut RequestHead,
) {
    let new: Bytes = match &forward.host_rewrite {
        HostRewrite::Keep => match weighted {
            Some(host) => Bytes::copy_from_slice(host.as_bytes()),
            None => return,
        },
        HostRewrite::Literal(host) => Bytes::copy_from_slice(host.as_bytes()),
        HostRewrite::Auto => match endpoint {
            Some(host) => Bytes::copy_from_slice(host.as_bytes()),
            None => return,
        },
        HostRewrite::Header(name) => {
            match head.fields.get(name.as_name()).filter(|value| !value.is_empty()) {
                Some(host) => Bytes::copy_from_slice(host),
                None => return,
            }
        }
        HostRewrite::PathRegex(regex, substitution) => {
            regex.replace_all(head.path_only(), &**substitution).into_owned().into()
        }
    };
    if *new == *head.authority() {
        return;
    }
    let original = Bytes::copy_from_slice(head.authority());
    if forward.append_x_forwarded_host {
        append_listed(&mut head.fields, Known::XForwardedHost, &original, b",");
    }
    // The first rewrite's original is the client's; a later one (another endpoint in a retry) must not hide it.
    if !head.fields.contains(Known::XEnvoyOriginalHost) {
        head.fields.set(Known::XEnvoyOriginalHost, &original);
    }
    head.set_authority(&new);
}

/// How much of the path the route's condition matched: a prefix, or all of it.
pub fn matched_length(matches: &RouteMatch, head: &RequestHead) -> usize {
    match &matches.path {
        PathMatch::Prefix(prefix) | PathMatch::SegmentPrefix(prefix) => prefix.value.len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => head.path_only().len(),
    }
}

/// The path with its first `length` bytes replaced.
pub fn with_prefix(path: &[u8], length: usize, replacement: &[u8]) -> Vec<u8> {
    let rest = path.get(length..).unwrap_or_default();
    let mut new = Vec::with_capacity(replacement.len() + rest.len() + 1);
    new.extend_from_slice(replacement);
    new.extend_from_slice(rest);
    if new.first() != Some(&b'/') {
        new.insert(0, b'/');
    }
    new
}

/// The path with all matches of `regex` in it (query left out) replaced.
pub fn with_regex(path: &[u8], regex: &Regex, substitution: &[u8]) -> Vec<u8> {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let mut new = regex.replace_all(&path[..end], substitution).into_owned();
    if new.first() != Some(&b'/') {
        new.insert(0, b'/');
    }
    new.extend_from_slice(&path[end..]);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::regex;
    use crate::config::route::{HeaderName, Text};
    use crate::http::test_support::{forward, path_match};

    fn text(value: &str) -> Text {
        Text { value: value.as_bytes().into(), ignore_case: false }
    }

    fn rewritten(rewrite: PathRewrite, matches: PathMatch, path: &str) -> (String, Option<String>) {
        let forward = Forward { rewrite, ..forward() };
        let mut head = RequestHead::new();
        head.set_path(path.as_bytes());
        rewrite_path(&forward, &path_match(matches), &mut head);
        let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (string(head.path()), head.fields.get(Known::XEnvoyOriginalPath).map(string))
    }

    #[test]
    fn paths() {
        let prefix = |value: &str| PathMatch::Prefix(text(value));
        let to = |value: &str| PathRewrite::Prefix(value.as_bytes().into());
        for (rewrite, matches, path, expected) in [
            (to("/"), prefix("/foo"), "/foobar", "/bar"),
            (to("/"), prefix("/foo"), "/foo/bar", "//bar"),
            (to("/new"), prefix("/foo"), "/foo?q=/foo", "/new?q=/foo"),
            (to("/new"), PathMatch::Exact(text("/foo")), "/foo?q", "/new?q"),
            (to("/new"), PathMatch::SegmentPrefix(text("/foo")), "/foo/bar", "/new/bar"),
            (to("/new"), PathMatch::Regex(regex::full_match("/f.*").unwrap()), "/foo/bar?q", "/new?q"),
            (to(""), prefix("/foo"), "/foo?q", "/?q"),
        ] {
            let (new, original) = rewritten(rewrite, matches, path);
            assert_eq!((&*new, original.as_deref()), (expected, Some(path)));
        }
        let (new, original) = rewritten(PathRewrite::Keep, prefix("/"), "/a");
        assert_eq!((&*new, original), ("/a", None));
        let (new, original) = rewritten(to("/a"), prefix("/a"), "/a/b");
        assert_eq!(
            (&*new, original.as_deref()),
            ("/a/b", Some("/a/b")),
            "said also where nothing changed, as Envoy does"
        );
    }

    #[test]
    fn regex_rewrites_all_matches_but_not_the_query() {
        let regex = regex::search("/v([0-9]+)").unwrap();
        let substitution = regex::substitution(r"/version/\1", &regex).unwrap();
        let rewrite = PathRewrite::Regex(regex, substitution);
        let (new, _) = rewritten(rewrite, PathMatch::Prefix(text("/")), "/v1/a/v2?x=/v3");
        assert_eq!(new, "/version/1/a/version/2?x=/v3");
    }

    #[test]
    fn hosts() {
        let host = |rewrite, weighted, endpoint| {
            let forward = Forward { host_rewrite: rewrite, append_x_forwarded_host: true, ..forward() };
            let mut head = RequestHead::new();
            head.set_authority(b"old:80");
            head.set_path(b"/tenant/x?y");
            head.fields.append("x-host", b"from-header");
            rewrite_host(&forward, weighted, endpoint, &mut head);
            let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let original = head.fields.get(Known::XEnvoyOriginalHost).map(string);
            assert_eq!(head.fields.get(Known::XForwardedHost).map(string), original);
            (string(head.authority()), original)
        };
        let old = || Some("old:80".to_owned());
        let regex = regex::search("^/([a-z]+)/.*$").unwrap();
        let substitution = regex::substitution(r"\1.example", &regex).unwrap();
        assert_eq!(host(HostRewrite::Keep, None, Some("e")), ("old:80".into(), None));
        assert_eq!(host(HostRewrite::Keep, Some("w"), None), ("w".into(), old()));
        assert_eq!(host(HostRewrite::Literal("new".into()), Some("w"), None), ("new".into(), old()));
        assert_eq!(host(HostRewrite::Auto, None, Some("e")), ("e".into(), old()));
        assert_eq!(host(HostRewrite::Auto, None, None), ("old:80".into(), None));
        assert_eq!(
            host(HostRewrite::Header(HeaderName::from("X-Host")), None, None),
            ("from-header".into(), old())
        );
        assert_eq!(host(HostRewrite::Header(HeaderName::from("none")), None, None), ("old:80".into(), None));
        assert_eq!(
            host(HostRewrite::PathRegex(regex, substitution), None, None),
            ("tenant.example".into(), old())
        );
        assert_eq!(host(HostRewrite::Literal("old:80".into()), None, None), ("old:80".into(), None));
    }
}
