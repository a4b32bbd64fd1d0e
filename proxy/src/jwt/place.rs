//! Where requests have tokens: headers, query parameters and cookies, in Envoy's order.
//!
//! Every occurrence counts, since an application may read another one than we do. (Envoy looks at the first of equal parameters
//! and cookies only.)

use std::borrow::Cow;

use percent_encoding::percent_decode;
use smallvec::SmallVec;

use crate::config::route::HeaderName;
use crate::http::head::{Known, RequestHead};

/// The places of a provider.
#[derive(Debug)]
pub struct Places {
    headers: Box<[(HeaderName, Box<[u8]>)]>,
    parameters: Box<[Box<[u8]>]>,
    cookies: Box<[Box<[u8]>]>,
}

/// A token of a request, and where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<'h> {
    /// As it came.
    pub token: Cow<'h, [u8]>,
    /// For taking it away.
    pub place: Place,
}

/// A place, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A header.
    Header(u16),
    /// A query parameter.
    Parameter(u16),
    /// A cookie.
    Cookie,
}

/// Tokens of a request; most have one.
pub type Tokens<'h> = SmallVec<[Found<'h>; 1]>;

impl Places {
    /// Places by their names; headers with the text before the token. Without any: `authorization: Bearer …`, else the parameter
    /// `access_token` (RFC 6750 2.1 and 2.3).
    pub fn new(headers: &[(&str, &str)], parameters: &[&str], cookies: &[&str]) -> Self {
        if headers.is_empty() && parameters.is_empty() && cookies.is_empty() {
            return Self::new(&[("authorization", "Bearer ")], &["access_token"], &[]);
        }
        let mut headers: Vec<(String, &str)> =
            headers.iter().map(|(name, prefix)| (name.to_ascii_lowercase(), *prefix)).collect();
        headers.sort_by_key(|(name, prefix)| format!("{name}{prefix}"));
        headers.dedup();
        let header =
            |(name, prefix): &(String, &str)| (HeaderName::from(name.as_str()), prefix.as_bytes().into());
        let sorted = |names: &[&str]| {
            let mut names: Vec<Box<[u8]>> = names.iter().map(|name| name.as_bytes().into()).collect();
            names.sort();
            names.dedup();
            names.into_boxed_slice()
        };
        Self {
            headers: headers.iter().map(header).collect(),
            parameters: sorted(parameters),
            cookies: sorted(cookies),
        }
    }

    /// All tokens that a request has there.
    pub fn find<'h>(&self, head: &'h RequestHead) -> Tokens<'h> {
        let mut found = Tokens::new();
        for (number, (name, prefix)) in self.headers.iter().enumerate() {
            for field in head.fields.iter().filter(|field| field.is(name.as_name())) {
                if let Some(token) = after(field.value, prefix) {
                    found.push(Found { token: token.into(), place: Place::Header(number as u16) });
                }
            }
        }
        if let (false, Some(query)) = (self.parameters.is_empty(), head.query()) {
            for (number, name) in self.parameters.iter().enumerate() {
                for (_, value) in parameters(query).filter(|(key, _)| *decoded(key) == **name) {
                    found.push(Found { token: decoded(value), place: Place::Parameter(number as u16) });
                }
            }
        }
        for name in &self.cookies {
            let cookies = head.fields.get_all(Known::Cookie).flat_map(cookies);
            for (_, value) in cookies.filter(|(key, _)| *key == &**name) {
                found.push(Found { token: value.into(), place: Place::Cookie });
            }
        }
        found
    }

    /// Takes the tokens of a place out of a request. Cookies stay, as in Envoy.
    pub fn remove(&self, place: Place, head: &mut RequestHead) {
        match place {
            Place::Header(number) => {
                if let Some((name, _)) = self.headers.get(usize::from(number)) {
                    head.fields.remove(name.as_name());
                }
            }
            Place::Parameter(number) => {
                if let Some(name) = self.parameters.get(usize::from(number)) {
                    remove_parameter(name, head);
                }
            }
            Place::Cookie => {}
        }
    }
}

/// What follows the prefix, from the first byte that a token can have. Like Envoy, the prefix may stand anywhere: what an
/// application could take for a token is looked at.
fn after<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|part| part == prefix)? + prefix.len();
    let is_of_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match value[at..].iter().position(is_of_token) {
        Some(start) => Some(&value[at + start..]),
        None => Some(value),
    }
}

/// Names and values of a query, as they are written.
fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').map(|pair| match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &b""[..]),
    })
}

/// A name or value of a query. A plus is a space, as forms have it.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    let text = match text.contains(&b'+') {
        true => Cow::Owned(text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect()),
        false => Cow::Borrowed(text),
    };
    match text {
        Cow::Borrowed(text) => percent_decode(text).into(),
        Cow::Owned(text) => Cow::Owned(percent_decode(&text).collect()),
    }
}

fn cookies(value: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    value.split(|byte| *byte == b';').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..at].trim_ascii_start(), &pair[at + 1..]);
        let quoted = value.len() >= 2 && value[0] == b'"' && value[value.len() - 1] == b'"';
        Some((name, if quoted { &value[1..value.len() - 1] } else { value }))
    })
}

fn remove_parameter(name: &[u8], head: &mut RequestHead) {
    let Some(query) = head.query() else { return };
    let mut path = head.path_only().to_vec();
    let mut mark = b'?';
    for pair in query.split(|byte| *byte == b'&') {
        let key = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        if *decoded(key) != *name {
            path.push(mark);
            path.extend_from_slice(pair);
            mark = b'&';
        }
    }
    head.set_path(&path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &str, lines: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new();
        head.set_path(path.as_bytes());
        for (name, value) in lines {
            head.fields.append(*name, value.as_bytes());
        }
        head
    }

    fn tokens(places: &Places, head: &RequestHead) -> Vec<String> {
        places.find(head).iter().map(|found| String::from_utf8_lossy(&found.token).into_owned()).collect()
    }

    #[test]
    fn the_usual_places() {
        let places = Places::new(&[], &[], &[]);
        for (path, lines, wanted) in [
            ("/", &[][..], &[][..]),
            ("/", &[("Authorization", "Bearer a.b.c")], &["a.b.c"]),
            ("/", &[("authorization", "Bearer   a.b.c")], &["a.b.c"]),
            ("/", &[("authorization", "bearer a.b.c")], &[]),
            ("/", &[("authorization", "Basic eDp5")], &[]),
            ("/", &[("authorization", "Bearer ")], &["Bearer "]),
            ("/", &[("authorization", "x Bearer a.b.c")], &["a.b.c"]),
            ("/", &[("authorization", "Bearer a"), ("authorization", "Bearer b")], &["a", "b"]),
            ("/?access_token=a.b.c&x", &[("authorization", "Bearer d")], &["d", "a.b.c"]),
            ("/?access_token=a&access%5Ftoken=%62+c", &[], &["a", "b c"]),
            ("/?Access_token=a&access_tokens=b&access_token", &[], &[""]),
        ] {
            assert_eq!(tokens(&places, &head(path, lines)), wanted, "{path} {lines:?}");
        }
    }

    #[test]
    fn places_of_ones_own_are_instead_of_them() {
        let places = Places::new(&[("X-B", ""), ("x-a", "t=")], &["q", "p"], &["s"]);
        let request = head(
            "/?q=1&p=2&access_token=3",
            &[
                ("x-b", "4"),
                ("x-a", "5"),
                ("x-a", "t=6"),
                ("authorization", "Bearer 7"),
                ("cookie", "r=8; s=9;s=\"10\"; t"),
                ("cookie", "s=11=12"),
            ],
        );
        assert_eq!(tokens(&places, &request), ["6", "4", "2", "1", "9", "10", "11=12"]);
    }

    #[test]
    fn a_token_is_taken_away_from_where_it_was() {
        let places = Places::new(&[("x-a", "")], &["t"], &["c"]);
        let mut request = head("/p?t=1&a=%20&t=2&b", &[("x-a", "1"), ("x-a", "2"), ("cookie", "c=1")]);
        let found: Vec<Place> = places.find(&request).iter().map(|found| found.place).collect();
        found.iter().for_each(|place| places.remove(*place, &mut request));
        assert_eq!(request.path(), b"/p?a=%20&b");
        assert_eq!(request.fields.iter().map(|field| field.name).collect::<Vec<_>>(), [b"cookie"]);
        let mut request = head("/p?%74=1", &[]);
        places.remove(Place::Parameter(0), &mut request);
        assert_eq!(request.path(), b"/p");
    }
}
