//! Conditions of a VirtualService's HTTP route.
//!
//! Those that are static (port, source, gateways) were decided by the snapshot and never reach a client.

use osier_proto::types::matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use osier_proto::types::route::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};

use crate::model::{HttpMatch, StringMatch, ValueMatch};

/// What matches every request.
pub(in crate::r#gen) fn everything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() }
}

/// The conditions on the request itself.
pub(super) fn translate(condition: &HttpMatch) -> RouteMatch {
    let mut matched = everything();
    if let Some(uri) = &condition.uri {
        matched.path_specifier = Some(path(uri));
        if condition.ignore_uri_case && !matches!(uri, StringMatch::Regex(_)) {
            matched.case_sensitive = Some(false);
        }
    }
    let pseudo = [
        (":method", &condition.method),
        (":authority", &condition.authority),
        (":scheme", &condition.scheme),
    ];
    for (name, value) in &condition.headers {
        matched.headers.push(header(name, value));
    }
    for (name, value) in &condition.without_headers {
        let missing_as_empty = matches!(value, ValueMatch::Text(_));
        matched.headers.push(HeaderMatcher {
            invert_match: true,
            treat_missing_header_as_empty: missing_as_empty,
            ..header(name, value)
        });
    }
    for (name, value) in pseudo {
        if let Some(value) = value {
            matched.headers.push(header(name, &ValueMatch::Text(value.clone())));
        }
    }
    matched.query_parameters = condition.query.iter().map(|(name, value)| query(name, value)).collect();
    matched
}

fn path(uri: &StringMatch) -> PathSpecifier {
    match uri {
        StringMatch::Exact(text) => PathSpecifier::Path(text.to_string()),
        StringMatch::Prefix(text) => PathSpecifier::Prefix(text.to_string()),
        StringMatch::Regex(text) => PathSpecifier::SafeRegex(regex(text)),
    }
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_string() }
}

fn header(name: &str, value: &ValueMatch) -> HeaderMatcher {
    let specifier = match value {
        ValueMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
        ValueMatch::Text(text) => HeaderMatchSpecifier::StringMatch(string(text)),
    };
    HeaderMatcher { name: name.to_string(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn query(name: &str, value: &ValueMatch) -> QueryParameterMatcher {
    let specifier = match value {
        ValueMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
        ValueMatch::Text(text) => QueryParameterMatchSpecifier::StringMatch(string(text)),
    };
    QueryParameterMatcher { name: name.to_string(), query_parameter_match_specifier: Some(specifier) }
}

fn string(text: &StringMatch) -> StringMatcher {
    let pattern = match text {
        StringMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        StringMatch::Regex(text) => MatchPattern::SafeRegex(regex(text)),
    };
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_case() {
        let uri = |uri, ignore_uri_case| HttpMatch { uri: Some(uri), ignore_uri_case, ..Default::default() };
        let got = translate(&uri(StringMatch::Prefix("/a".into()), true));
        assert_eq!(got.path_specifier, Some(PathSpecifier::Prefix("/a".into())));
        assert_eq!(got.case_sensitive, Some(false));
        let got = translate(&uri(StringMatch::Regex("/a.*".into()), true));
        assert_eq!(got.path_specifier, Some(PathSpecifier::SafeRegex(regex("/a.*"))));
        assert_eq!(got.case_sensitive, None, "no effect on a regex");
        let got = translate(&uri(StringMatch::Exact("/a".into()), false));
        assert_eq!(got.path_specifier, Some(PathSpecifier::Path("/a".into())));
        assert_eq!(translate(&HttpMatch::default()), everything());
    }

    #[test]
    fn headers_without_headers_and_query() {
        let text = |t: &str| ValueMatch::Text(StringMatch::Exact(t.into()));
        let got = translate(&HttpMatch {
            method: Some(StringMatch::Exact("GET".into())),
            headers: vec![("a".into(), text("1")), ("b".into(), ValueMatch::Present)],
            without_headers: vec![("c".into(), text("2")), ("d".into(), ValueMatch::Present)],
            query: vec![("q".into(), text("3"))],
            ..Default::default()
        });
        let seen: Vec<_> = got
            .headers
            .iter()
            .map(|h| (h.name.as_str(), h.invert_match, h.treat_missing_header_as_empty))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", false, false),
                ("b", false, false),
                ("c", true, true),
                ("d", true, false),
                (":method", false, false)
            ]
        );
        assert_eq!(got.query_parameters[0].name, "q");
    }
}
