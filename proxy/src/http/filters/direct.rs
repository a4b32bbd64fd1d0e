//! Requests that are answered here: redirects, fixed responses, and what is denied.

use super::rewrite::{matched_length, with_prefix, with_regex};
use crate::authz::{DENIED_BY, Denial};
use crate::config::route::{DirectResponse, Redirect, RedirectPath, RouteMatch};
use crate::http::head::{Known, Name, RequestHead};
use crate::http::reply::LocalReply;
use crate::http::router::without_port;
use crate::jwt::Refusal;

/// Bytes of a path that are told to whom it is refused, as in Envoy.
const MAX_REALM_PATH: usize = 256;

/// The answer of a `direct_response` route.
pub fn fixed(direct: &DirectResponse) -> LocalReply {
    LocalReply::new(direct.status, direct.body.clone(), "direct_response")
}

/// The answer of a `redirect` route.
pub fn redirect(redirect: &Redirect, matches: &RouteMatch, head: &RequestHead) -> LocalReply {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme.as_str());
    let host = match redirect.host.as_deref() {
        Some(host) => host.as_bytes(),
        None => kept_host(head, scheme, redirect.port.is_some()),
    };
    let mut location = Vec::with_capacity(scheme.len() + host.len() + head.path().len() + 16);
    location.extend_from_slice(scheme.as_bytes());
    location.extend_from_slice(b"://");
    location.extend_from_slice(host);
    if let Some(port) = redirect.port {
        location.extend_from_slice(format!(":{port}").as_bytes());
    }
    location.extend_from_slice(&path(redirect, matches, head));
    answer(redirect.status, &location)
}

/// The answer where a virtual host wants TLS.
pub fn to_https(head: &RequestHead) -> LocalReply {
    let mut location = b"https://".to_vec();
    location.extend_from_slice(kept_host(head, "https", false));
    location.extend_from_slice(head.path());
    answer(301, &location)
}

/// The answer to a path with escaped slashes, where those are to be decoded by the client.
pub fn to_path(head: &RequestHead, path: &[u8]) -> LocalReply {
    let mut location = format!("{}://", head.scheme.as_str()).into_bytes();
    location.extend_from_slice(head.authority());
    location.extend_from_slice(path);
    answer(307, &location)
}

/// The answer to what a policy denies. It doesn't say which, unless the operator wants it to.
pub fn denied(denial: &Denial, names_policy: bool) -> LocalReply {
    let mut reply = LocalReply::new(403, "RBAC: access denied", denial.details.to_string());
    if names_policy {
        reply.head.fields.set(Name::Other(DENIED_BY.as_bytes()), denial.policy.as_bytes());
    }
    reply
}

/// The answer to a request without the tokens that it needs, or with one that is not valid (RFC 6750 3).
pub fn not_authenticated(refusal: Refusal, head: &RequestHead) -> LocalReply {
    let text = refusal.to_string();
    let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
    let mut reply = LocalReply::new(refusal.status(), text, details);
    let mut realm = format!("Bearer realm=\"{}://", head.scheme.as_str()).into_bytes();
    realm.extend_from_slice(head.authority());
    let path = head.path();
    for byte in &path[..path.len().min(MAX_REALM_PATH)] {
        // What is quoted ends at a quote.
        match byte {
            b'"' => realm.extend_from_slice(b"%22"),
            b'\\' => realm.extend_from_slice(b"%5C"),
            byte => realm.push(*byte),
        }
    }
    realm.push(b'"');
    if refusal != Refusal::Missing {
        realm.extend_from_slice(b", error=\"invalid_token\"");
    }
    reply.head.fields.set(Name::Other(b"www-authenticate"), &realm);
    reply
}

fn answer(status: u16, location: &[u8]) -> LocalReply {
    let mut reply = LocalReply::new(status, "", "direct_response");
    reply.head.fields.set(Known::Location, location);
    reply
}

/// The request's host. Its port is dropped where another is given, or where it is the default of a scheme that changes.
fn kept_host<'h>(head: &'h RequestHead, scheme: &str, other_port: bool) -> &'h [u8] {
    let authority = head.authority();
    let host = without_port(authority);
    let default: &[u8] = if head.scheme.as_str() == "https" { b":443" } else { b":80" };
    let scheme_changes = scheme != head.scheme.as_str();
    if other_port || (scheme_changes && &authority[host.len()..] == default) { host } else { authority }
}

fn path(redirect: &Redirect, matches: &RouteMatch, head: &RequestHead) -> Vec<u8> {
    let query = |path: &[u8]| path.iter().position(|byte| *byte == b'?');
    let mut new = match &redirect.path {
        // A query of the configuration stays, even where queries are stripped.
        RedirectPath::Replace(path) if query(path).is_some() => return path.to_vec(),
        RedirectPath::Replace(path) => {
            let at = query(head.path()).unwrap_or(head.path().len());
            [path, &head.path()[at..]].concat()
        }
        RedirectPath::Keep => head.path().to_vec(),
        RedirectPath::Prefix(replacement) => {
            with_prefix(head.path(), matched_length(matches, head), replacement)
        }
        RedirectPath::Regex(regex, substitution) => with_regex(head.path(), regex, substitution),
    };
    if redirect.strip_query
        && let Some(at) = query(&new)
    {
        new.truncate(at);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::regex;
    use crate::config::route::{PathMatch, Text};
    use crate::http::head::Scheme;
    use crate::http::test_support::path_match;

    fn plain() -> Redirect {
        Redirect {
            status: 301,
            scheme: None,
            host: None,
            port: None,
            path: RedirectPath::Keep,
            strip_query: false,
        }
    }

    fn location(redirect_to: Redirect, scheme: Scheme, host: &str, path: &str) -> String {
        let prefix = PathMatch::Prefix(Text { value: b"/old"[..].into(), ignore_case: false });
        let mut head = RequestHead::new();
        head.scheme = scheme;
        head.set_authority(host.as_bytes());
        head.set_path(path.as_bytes());
        let reply = redirect(&redirect_to, &path_match(prefix), &head);
        assert_eq!((reply.head.status, &*reply.details), (301, "direct_response"));
        String::from_utf8(reply.head.fields.get(Known::Location).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn locations() {
        use Scheme::{Http, Https};
        let replace = |path: &str| RedirectPath::Replace(path.as_bytes().into());
        let regex = regex::search("old").unwrap();
        for (redirect, scheme, host, path, expected) in [
            (plain(), Http, "a", "/old?q", "http://a/old?q"),
            (Redirect { host: Some("b".into()), ..plain() }, Http, "a:8080", "/", "http://b/"),
            (Redirect { scheme: Some("https".into()), ..plain() }, Http, "a:80", "/", "https://a/"),
            (Redirect { scheme: Some("https".into()), ..plain() }, Http, "a:8080", "/", "https://a:8080/"),
            (Redirect { scheme: Some("http".into()), ..plain() }, Https, "a:443", "/", "http://a/"),
            (Redirect { scheme: Some("https".into()), ..plain() }, Https, "a:443", "/", "https://a:443/"),
            (Redirect { port: Some(8443), ..plain() }, Http, "a:80", "/", "http://a:8443/"),
            (Redirect { port: Some(8443), ..plain() }, Http, "[::1]:80", "/", "http://[::1]:8443/"),
            (Redirect { path: replace("/new"), ..plain() }, Http, "a", "/old/x?q", "http://a/new?q"),
            (Redirect { path: replace("/new?own"), ..plain() }, Http, "a", "/old?q", "http://a/new?own"),
            (
                Redirect { path: replace("/new?own"), strip_query: true, ..plain() },
                Http,
                "a",
                "/old?q",
                "http://a/new?own",
            ),
            (Redirect { strip_query: true, ..plain() }, Http, "a", "/old?q", "http://a/old"),
            (
                Redirect { path: RedirectPath::Prefix(b"/new"[..].into()), ..plain() },
                Http,
                "a",
                "/old/x?q",
                "http://a/new/x?q",
            ),
            (
                Redirect { path: RedirectPath::Regex(regex, b"new"[..].into()), ..plain() },
                Http,
                "a",
                "/old/old?old",
                "http://a/new/new?old",
            ),
        ] {
            assert_eq!(location(redirect, scheme, host, path), expected);
        }
    }

    #[test]
    fn tls_and_slashes() {
        let mut head = RequestHead::new();
        head.set_authority(b"a:80");
        head.set_path(b"/x?y");
        assert_eq!(to_https(&head).head.fields.get(Known::Location), Some(&b"https://a/x?y"[..]));
        let reply = to_path(&head, b"/a/b");
        assert_eq!(
            (reply.head.status, reply.head.fields.get(Known::Location)),
            (307, Some(&b"http://a:80/a/b"[..]))
        );
    }
}
