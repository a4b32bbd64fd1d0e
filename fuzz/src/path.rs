//! What must hold for any path: what comes out of normalisation is what rules see and what is forwarded, so no second reading of it may
//! differ. The first byte of an input says which rules hold, the rest is the path with its query.

use osier_proxy::config::listener::{EscapedSlashes, Normalize};
use osier_proxy::http::normalize::{Normalized, normalize};

/// Checks one input.
pub fn check(input: &[u8]) {
    let [rules, target @ ..] = input else { return };
    let escaped =
        [EscapedSlashes::Keep, EscapedSlashes::Decode, EscapedSlashes::Redirect, EscapedSlashes::Reject];
    let rules = Normalize {
        path: rules & 1 != 0,
        merge_slashes: rules & 2 != 0,
        escaped_slashes: escaped[usize::from(rules >> 2) % 4],
    };
    let normal = match normalize(target, rules) {
        Normalized::Refused(detail) => return assert!(!detail.is_empty()),
        Normalized::Path(path) => path.into_owned(),
        Normalized::Redirect(path) => path,
    };
    assert_eq!(
        normalize(&normal, rules),
        Normalized::Path((&normal[..]).into()),
        "{}",
        normal.escape_ascii()
    );
    assert!(!normal.contains(&b'#'), "a fragment is no part of a path");
    if target.first() != Some(&b'/') {
        return;
    }
    assert_eq!(normal.first(), Some(&b'/'), "{}", normal.escape_ascii());
    let path = normal.split(|b| *b == b'?').next().unwrap_or_default();
    if rules.path {
        assert!(!path.contains(&b'\\'), "{}", path.escape_ascii());
        let dots = |segment: &[u8]| [&b"."[..], b".."].contains(&segment);
        assert!(!path.split(|b| *b == b'/').any(dots), "{}", path.escape_ascii());
    }
    if rules.merge_slashes {
        assert!(!path.windows(2).any(|pair| pair == b"//"), "{}", path.escape_ascii());
    }
    if rules.escaped_slashes != EscapedSlashes::Keep {
        let lower = path.to_ascii_lowercase();
        let escaped = |text: &[u8]| lower.windows(3).any(|three| three == text);
        assert!(!escaped(b"%2f") && !escaped(b"%5c"), "{}", path.escape_ascii());
    }
}
