//! Host names and wildcard patterns, as Istio's resources use them.
//!
//! A [`Host`] is kept lower-cased and without a final dot, so that equality is a byte compare. A pattern may have a wildcard only
//! in its first label (`*`, `*.foo.com`, `*foo.com`). `covers` is directional, `overlaps` is symmetric; both treat names and
//! patterns alike.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

/// A DNS name, a wildcard pattern over DNS names, or an IP literal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than DNS allows.
    #[error("is longer than 255 characters")]
    TooLong,
    /// A label breaks the rules of DNS.
    #[error("has the label {0:?}, which is no DNS label (at most 63 letters, digits and inner hyphens)")]
    Label(String),
    /// The last label is a number, so the name would read as an address.
    #[error("ends in a label of digits only")]
    NumericEnd,
    /// A wildcard somewhere else than in the first label.
    #[error("has a wildcard outside its first label")]
    Wildcard,
}

impl Host {
    /// Takes a name or pattern as it is, lower-cased and without its final dot. For texts that were checked before.
    pub fn new(text: &str) -> Self {
        let text = text.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(text);
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            Self(text.to_ascii_lowercase().into())
        } else {
            Self(text.into())
        }
    }

    /// Checks a fully qualified name: no wildcard.
    pub fn parse_fqdn(text: &str) -> Result<Self, HostError> {
        if text.contains('*') {
            return Err(HostError::Wildcard);
        }
        check_labels(text, false)?;
        Ok(Self::new(text))
    }

    /// Checks a name that may have a wildcard in its first label.
    pub fn parse_pattern(text: &str) -> Result<Self, HostError> {
        check_labels(text, true)?;
        Ok(Self::new(text))
    }

    /// The text: lower-cased, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }

    /// True for `*`, `*.foo.com` and `*foo.com`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// The address, where the text is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// True if every name of `other` is a name of `self`.
    pub fn covers(&self, other: &Host) -> bool {
        match (self.0.strip_prefix('*'), other.0.strip_prefix('*')) {
            (None, None) => self == other,
            (None, Some(_)) => false,
            (Some(suffix), None) => other.0.ends_with(suffix),
            (Some(suffix), Some(narrow)) => narrow.ends_with(suffix),
        }
    }

    /// [`Host::covers`] for a plain name that is already lower-cased.
    pub fn covers_name(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            None => &*self.0 == name,
            Some(suffix) => name.ends_with(suffix),
        }
    }

    /// True if either side covers the other: for patterns of this form the same as having a name in common.
    pub fn overlaps(&self, other: &Host) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Orders the most specific first: exact names, then longer wildcards, `*` last; equals by text.
    pub fn by_specificity(&self, other: &Host) -> Ordering {
        self.is_wildcard()
            .cmp(&other.is_wildcard())
            .then_with(|| if self.is_wildcard() { other.0.len().cmp(&self.0.len()) } else { Ordering::Equal })
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// True for one DNS-1123 label, upper case tolerated.
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// True for what may name an object: lower-case letters, digits and hyphens, with dots where `dots`.
pub fn is_object_name(text: &str, dots: bool) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(good)
}

fn check_labels(text: &str, wildcard: bool) -> Result<(), HostError> {
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    if text.len() > 255 {
        return Err(HostError::TooLong);
    }
    if text == "*" && wildcard {
        return Ok(());
    }
    let body = text.strip_suffix('.').unwrap_or(text);
    let mut last = "";
    for (index, label) in body.split('.').enumerate() {
        last = label;
        let plain = match label.strip_prefix('*') {
            Some(rest) if wildcard && index == 0 => rest.strip_prefix('-').unwrap_or(rest),
            _ => label,
        };
        if plain.contains('*') {
            return Err(HostError::Wildcard);
        }
        let bare_wildcard = plain.is_empty() && plain.len() != label.len();
        if !bare_wildcard && !is_label(plain) {
            return Err(HostError::Label(label.into()));
        }
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::NumericEnd);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Host {
        Host::new(text)
    }

    #[test]
    fn coverage() {
        // (pattern, other, pattern covers other, other covers pattern)
        for (a, b, ab, ba) in [
            ("*", "foo.com", true, false),
            ("*", "*.foo.com", true, false),
            ("*", "*", true, true),
            ("*.foo.com", "a.foo.com", true, false),
            ("*.foo.com", "a.b.foo.com", true, false),
            ("*.foo.com", "foo.com", false, false),
            ("*.foo.com", "afoo.com", false, false),
            ("*.com", "*.foo.com", true, false),
            ("*.foo.com", "*.bar.com", false, false),
            ("*foo.com", "afoo.com", true, false),
            ("A.Foo.Com", "a.foo.com", true, true),
            ("a.foo.com.", "a.foo.com", true, true),
            ("a.foo.com", "b.foo.com", false, false),
        ] {
            assert_eq!(host(a).covers(&host(b)), ab, "{a} covers {b}");
            assert_eq!(host(b).covers(&host(a)), ba, "{b} covers {a}");
            assert_eq!(host(a).overlaps(&host(b)), ab || ba, "{a} overlaps {b}");
            assert_eq!(host(b).overlaps(&host(a)), ab || ba, "{b} overlaps {a}");
        }
    }

    #[test]
    fn most_specific_first() {
        let mut hosts: Vec<_> = ["*", "*.com", "z.com", "*.foo.com", "a.com", "*.bar.com"].map(host).into();
        hosts.sort_by(Host::by_specificity);
        let texts: Vec<_> = hosts.iter().map(Host::as_str).collect();
        assert_eq!(texts, ["a.com", "z.com", "*.bar.com", "*.foo.com", "*.com", "*"]);
    }

    #[test]
    fn fqdn_and_pattern_rules() {
        let label = "a".repeat(63);
        let long_label = "a".repeat(64);
        let long = [label.as_str(); 5].join(".");
        for (text, fqdn, pattern) in [
            ("foo", true, true),
            ("foo.com", true, true),
            ("foo.com.", true, true),
            (&*label, true, true),
            (&*long_label, false, false),
            (&*long, false, false),
            ("", false, false),
            (".", false, false),
            ("a..b", false, false),
            ("-a.com", false, false),
            ("a-.com", false, false),
            ("a_b.com", false, false),
            ("a.123", false, false),
            ("1a.com", true, true),
            ("*", false, true),
            ("*.foo.com", false, true),
            ("*foo.com", false, true),
            ("a.*.com", false, false),
            ("a*.com", false, false),
            ("**.com", false, false),
        ] {
            assert_eq!(Host::parse_fqdn(text).is_ok(), fqdn, "fqdn {text:?}");
            assert_eq!(Host::parse_pattern(text).is_ok(), pattern, "pattern {text:?}");
        }
        assert_eq!(Host::parse_pattern("a.*.com"), Err(HostError::Wildcard));
    }

    fn any_host() -> impl Strategy<Value = Host> {
        (any::<bool>(), prop::collection::vec("[ab]{1,2}", 0..4)).prop_map(|(wild, labels)| {
            let rest = labels.join(".");
            match (wild, rest.is_empty()) {
                (true, true) => host("*"),
                (true, false) => host(&format!("*.{rest}")),
                (false, true) => host("a"),
                (false, false) => host(&rest),
            }
        })
    }

    proptest! {
        #[test]
        fn covering_is_a_partial_order(a in any_host(), b in any_host(), c in any_host()) {
            prop_assert!(a.covers(&a));
            if a.covers(&b) && b.covers(&c) {
                prop_assert!(a.covers(&c), "{a} {b} {c}");
            }
            if a.covers(&b) && b.covers(&a) {
                prop_assert_eq!(&a, &b);
            }
        }

        #[test]
        fn overlap_is_symmetric_and_means_a_common_name(a in any_host(), b in any_host(), name in "[ab]{1,2}(\\.[ab]{1,2}){0,4}") {
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            if a.covers_name(&name) && b.covers_name(&name) {
                prop_assert!(a.overlaps(&b), "{a} and {b} share {name}");
            }
        }

        #[test]
        fn the_covered_one_is_at_least_as_specific(a in any_host(), b in any_host()) {
            if a.covers(&b) {
                prop_assert_ne!(b.by_specificity(&a), Ordering::Greater);
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = Host::parse_fqdn(&text);
            let _ = Host::parse_pattern(&text);
            let _ = Host::new(&text);
        }
    }
}
