//! Conditions on text, headers and query parameters.

use ::regex::bytes::Regex;
use osier_proto::types::{
    matcher::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern},
    route::{
        HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier,
    },
};

use super::value::{not_empty, required};
use super::{At, Invalid};
use crate::config::regex;
use crate::config::route::{HeaderMatch, QueryMatch, Text, ValueMatch};

/// A literal, lower-cased where case doesn't count.
pub(super) fn text(value: &str, ignore_case: bool) -> Text {
    let mut value: Box<[u8]> = value.as_bytes().into();
    if ignore_case {
        value.make_ascii_lowercase();
    }
    Text { value, ignore_case }
}

/// A pattern that must match the whole value.
pub(super) fn whole(message: &RegexMatcher) -> Result<Regex, Invalid> {
    not_empty("regex", &message.regex)?;
    regex::full_match(&message.regex).map_err(|e| Invalid::new("regex", e))
}

/// A pattern whose matches are replaced, and what by.
pub(super) fn rewrite(message: &RegexMatchAndSubstitute) -> Result<(Regex, Box<[u8]>), Invalid> {
    let pattern = required("pattern", message.pattern.as_ref())?;
    not_empty("pattern.regex", &pattern.regex)?;
    let compiled = regex::search(&pattern.regex).map_err(|e| Invalid::new("pattern.regex", e))?;
    let by =
        regex::substitution(&message.substitution, &compiled).map_err(|e| Invalid::new("substitution", e))?;
    Ok((compiled, by))
}

/// A condition on a value.
pub(super) fn string(message: &StringMatcher) -> Result<ValueMatch, Invalid> {
    let literal = |field: &str, value: &str, empty_is_fine: bool| {
        if !empty_is_fine {
            not_empty(field, value)?;
        }
        Ok(text(value, message.ignore_case))
    };
    Ok(match required("match_pattern", message.match_pattern.as_ref())? {
        MatchPattern::Exact(value) => ValueMatch::Exact(literal("exact", value, true)?),
        MatchPattern::Prefix(value) => ValueMatch::Prefix(literal("prefix", value, false)?),
        MatchPattern::Suffix(value) => ValueMatch::Suffix(literal("suffix", value, false)?),
        MatchPattern::Contains(value) => ValueMatch::Contains(literal("contains", value, false)?),
        MatchPattern::SafeRegex(_) if message.ignore_case => {
            return Err(Invalid::new("ignore_case", "has no effect on `safe_regex`; write `(?i)`"));
        }
        MatchPattern::SafeRegex(regex) => ValueMatch::Regex(whole(regex).at("safe_regex")?),
    })
}

pub(super) fn header(message: &HeaderMatcher) -> Result<HeaderMatch, Invalid> {
    use HeaderMatchSpecifier as Specifier;
    not_empty("name", &message.name)?;
    let literal = |field: &str, value: &str| not_empty(field, value).map(|()| text(value, false));
    let value = match &message.header_match_specifier {
        None => ValueMatch::Present(true),
        Some(Specifier::PresentMatch(present)) => ValueMatch::Present(*present),
        Some(Specifier::ExactMatch(value)) => ValueMatch::Exact(text(value, false)),
        Some(Specifier::PrefixMatch(value)) => ValueMatch::Prefix(literal("prefix_match", value)?),
        Some(Specifier::SuffixMatch(value)) => ValueMatch::Suffix(literal("suffix_match", value)?),
        Some(Specifier::ContainsMatch(value)) => ValueMatch::Contains(literal("contains_match", value)?),
        Some(Specifier::SafeRegexMatch(regex)) => ValueMatch::Regex(whole(regex).at("safe_regex_match")?),
        Some(Specifier::RangeMatch(range)) => ValueMatch::Range(range.start, range.end),
        Some(Specifier::StringMatch(matcher)) => string(matcher).at("string_match")?,
    };
    Ok(HeaderMatch {
        subject: message.name.as_str().into(),
        value,
        invert: message.invert_match,
        missing_as_empty: message.treat_missing_header_as_empty,
    })
}

pub(super) fn query(message: &QueryParameterMatcher) -> Result<QueryMatch, Invalid> {
    use QueryParameterMatchSpecifier as Specifier;
    not_empty("name", &message.name)?;
    let value = match &message.query_parameter_match_specifier {
        None => ValueMatch::Present(true),
        Some(Specifier::PresentMatch(present)) => ValueMatch::Present(*present),
        Some(Specifier::StringMatch(matcher)) => string(matcher).at("string_match")?,
    };
    Ok(QueryMatch { name: message.name.as_bytes().into(), value })
}
