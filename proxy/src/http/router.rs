//! Which virtual host and route take a request: pure look-ups in a route table.
//!
//! Hosts: exact, longest `*.suffix`, longest `prefix.*`, `*`. Routes: the first in order whose conditions all hold.
//! Envoy's rules to the letter: paths are compared without query, one line of a repeated header is enough, query parameters
//! are compared as they are written and the first occurrence counts, a missing header fails every condition on its value,
//! even an inverted one, unless it counts as empty.

use std::sync::Arc;

use smallvec::SmallVec;

use super::head::{Method, RequestHead};
use super::template::request_value;
use crate::config::route::{
    HeaderMatch, HostIndex, HostMap, PathMatch, QueryMatch, Route, RouteMatch, Subject, Text, ValueMatch,
    VirtualHost,
};
use crate::jwt::Accepted;

/// The virtual host that serves `authority`.
pub fn find_host<'t>(
    index: &'t HostIndex,
    authority: &[u8],
    ignore_port: bool,
) -> Option<&'t Arc<VirtualHost>> {
    if index.exact.is_empty() && index.suffixes.is_empty() && index.prefixes.is_empty() {
        return index.catch_all.as_ref();
    }
    let host = if ignore_port { without_port(authority) } else { authority };
    let host = lower_case(host);
    index
        .exact
        .get(&*host)
        .or_else(|| longest(&index.suffixes, host.len(), |length| &host[host.len() - length..]))
        .or_else(|| longest(&index.prefixes, host.len(), |length| &host[..length]))
        .or(index.catch_all.as_ref())
}

/// Of maps by length, longest first, the first that holds its part of the host. A wildcard stands for at least one byte.
fn longest<'t, 'h>(
    maps: &'t [(usize, HostMap)],
    host_length: usize,
    part: impl Fn(usize) -> &'h [u8],
) -> Option<&'t Arc<VirtualHost>> {
    maps.iter().filter(|(length, _)| *length < host_length).find_map(|(length, map)| map.get(part(*length)))
}

/// Lower-cased without an allocation for hosts of usual length.
fn lower_case(host: &[u8]) -> SmallVec<[u8; 128]> {
    let mut lower = SmallVec::from_slice(host);
    lower.make_ascii_lowercase();
    lower
}

/// A host without its port: `a:80`, `[::1]:80` (the brackets stay).
pub fn without_port(authority: &[u8]) -> &[u8] {
    let Some(colon) = authority.iter().rposition(|b| *b == b':') else { return authority };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    let bare_v6 = host.contains(&b':') && host.last() != Some(&b']');
    if bare_v6 || !port.iter().all(u8::is_ascii_digit) { authority } else { host }
}

/// The first route of `host` that takes `head`. `random` decides runtime fractions.
pub fn find_route<'t>(
    host: &'t VirtualHost,
    head: &RequestHead,
    tokens: &[Accepted<'_>],
    random: u64,
) -> Option<&'t Arc<Route>> {
    let path = head.path_only();
    host.routes.iter().find(|route| holds(&route.matches, head, path, tokens, random))
}

/// True where all conditions hold for a request with this path and these verified tokens.
pub(crate) fn holds(
    matches: &RouteMatch,
    head: &RequestHead,
    path: &[u8],
    tokens: &[Accepted<'_>],
    random: u64,
) -> bool {
    path_holds(&matches.path, head, path)
        && (!matches.grpc || head.is_grpc())
        && matches.headers.iter().all(|header| header_holds(header, head))
        && matches.claims.iter().all(|claim| claim.holds(tokens))
        && (matches.query.is_empty() || query_holds(&matches.query, head.query().unwrap_or_default()))
        && matches.runtime_fraction.is_none_or(|share| fraction(random) < u64::from(share))
}

/// The draw for runtime fractions, in parts per million. Other bits than those that choose a weighted cluster, so that
/// the two are independent.
fn fraction(random: u64) -> u64 {
    (random >> 32) % 1_000_000
}

fn path_holds(matches: &PathMatch, head: &RequestHead, path: &[u8]) -> bool {
    // A CONNECT without a path matches nothing else.
    if path.is_empty() || matches!(matches, PathMatch::Connect) {
        return matches!(matches, PathMatch::Connect) && head.method() == Method::Connect;
    }
    match matches {
        PathMatch::Prefix(prefix) => prefix.begins(path),
        PathMatch::Exact(exact) => exact.equals(path),
        PathMatch::SegmentPrefix(prefix) => {
            prefix.begins(path) && matches!(path.get(prefix.value.len()), None | Some(b'/'))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Connect => false,
    }
}

/// True where a header condition holds for a request.
pub(crate) fn header_holds(matches: &HeaderMatch, head: &RequestHead) -> bool {
    let Subject::Header(name) = &matches.subject else {
        return values_hold(matches, request_value(head, &matches.subject).into_iter());
    };
    values_hold(matches, head.fields.get_all(name.as_name()))
}

/// Lines are never joined: what a rule forbids must not become allowed by sending it twice.
pub(crate) fn values_hold<'v>(matches: &HeaderMatch, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
    let first = values.next();
    if let ValueMatch::Present(present) = matches.value {
        let there = first.is_some() || matches.missing_as_empty;
        return (there == present) != matches.invert;
    }
    match first {
        Some(first) => {
            let holds = |value| matches.value.holds(value);
            (holds(first) || values.any(holds)) != matches.invert
        }
        None => matches.missing_as_empty && matches.value.holds(b"") != matches.invert,
    }
}

impl ValueMatch {
    /// True for `value`.
    pub fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Exact(text) => text.equals(value),
            Self::Prefix(text) => text.begins(value),
            Self::Suffix(text) => text.ends(value),
            Self::Contains(text) => text.is_in(value),
            Self::Regex(regex) => regex.is_match(value),
            Self::Range(start, end) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
        }
    }
}

fn query_holds(matches: &[QueryMatch], query: &[u8]) -> bool {
    matches.iter().all(|wanted| {
        let value = query_value(query, &wanted.name);
        match (&wanted.value, value) {
            (ValueMatch::Present(present), value) => value.is_some() == *present,
            (_, None) => false,
            (condition, Some(value)) => condition.holds(value),
        }
    })
}

/// The value of the first parameter `name`.
fn query_value<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|b| *b == b'&').filter(|pair| !pair.is_empty()).find_map(|pair| {
        let (key, value) = match pair.iter().position(|b| *b == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        (key == name).then_some(value)
    })
}

impl Text {
    /// True for the whole of `value`.
    pub fn equals(&self, value: &[u8]) -> bool {
        if self.ignore_case { self.value.eq_ignore_ascii_case(value) } else { *self.value == *value }
    }

    /// True where `value` starts with this.
    pub fn begins(&self, value: &[u8]) -> bool {
        value.get(..self.value.len()).is_some_and(|start| self.equals(start))
    }

    /// True where `value` ends with this.
    pub fn ends(&self, value: &[u8]) -> bool {
        let rest = value.len().checked_sub(self.value.len());
        rest.is_some_and(|start| self.equals(&value[start..]))
    }

    /// True where `value` contains this.
    pub fn is_in(&self, value: &[u8]) -> bool {
        self.value.is_empty() || value.windows(self.value.len()).any(|part| self.equals(part))
    }
}

#[cfg(test)]
mod tests;
