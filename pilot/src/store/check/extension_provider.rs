//! `extensionProviders` of the mesh configuration, as far as they are authorizers.

use std::collections::BTreeSet;

use osier_core::host::{self, Host};

use super::{Check, Path, is_header_name};
use crate::model::{AskedOver, Authorizer, HttpQuestion, ShownBody, TextMatch};
use crate::store::schema::mesh as schema;

/// Statuses that Istio knows (Envoy's `StatusCode`).
const STATUSES: &[(u16, u16)] = &[
    (200, 208),
    (226, 226),
    (300, 305),
    (307, 308),
    (400, 417),
    (421, 424),
    (426, 426),
    (428, 429),
    (431, 431),
    (500, 508),
    (510, 511),
];
/// Headers that frame the question, or that it always has.
const OWN_HEADERS: [&str; 5] = ["connection", "content-length", "host", "te", "transfer-encoding"];

impl Check<'_> {
    /// The providers that can be asked. Others are for telemetry.
    pub(super) fn authorizers(
        &mut self,
        at: Path<'_>,
        providers: &[schema::ExtensionProvider],
    ) -> Vec<Authorizer> {
        let (mut names, mut found) = (BTreeSet::new(), Vec::new());
        for (index, provider) in providers.iter().enumerate() {
            let here = at.index(index);
            self.require(!provider.name.is_empty(), here.field("name"), || "is required".into());
            let fresh = names.insert(provider.name.as_str());
            self.require(fresh, here.field("name"), || format!("{:?} is there twice", provider.name));
            match (&provider.envoy_ext_authz_http, &provider.envoy_ext_authz_grpc) {
                (Some(_), Some(_)) => {
                    self.error(here.field("envoyExtAuthzGrpc"), "excludes envoyExtAuthzHttp")
                }
                (Some(http), None) => {
                    self.authorizer_name(here.field("name"), &provider.name);
                    found.extend(self.over_http(here.field("envoyExtAuthzHttp"), &provider.name, http));
                }
                (None, Some(grpc)) => {
                    self.authorizer_name(here.field("name"), &provider.name);
                    found.extend(self.over_grpc(here.field("envoyExtAuthzGrpc"), &provider.name, grpc));
                }
                (None, None) => {}
            }
        }
        found
    }

    fn authorizer_name(&mut self, at: Path<'_>, name: &str) {
        let lower = !name.chars().any(|c| c.is_ascii_uppercase());
        self.require(lower && host::is_label(name), at, || {
            format!("{name:?} is no name (at most 63 lower-case letters, digits and inner hyphens)")
        });
    }

    fn over_http(&mut self, at: Path<'_>, name: &str, spec: &schema::ExtAuthzHttp) -> Option<Authorizer> {
        let prefix = &spec.path_prefix;
        let plain = prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        self.require(prefix.is_empty() || prefix.starts_with('/') && plain, at.field("pathPrefix"), || {
            format!("{prefix:?} must begin with a slash, and have neither spaces nor a query")
        });
        let mut shown = self.header_patterns(
            at.field("includeRequestHeadersInCheck"),
            &spec.include_request_headers_in_check,
        );
        shown.extend(self.header_patterns(at.field("includeHeadersInCheck"), &spec.include_headers_in_check));
        let extra = at.field("includeAdditionalHeadersInCheck");
        for (header, value) in &spec.include_additional_headers_in_check {
            let here = extra.key(header);
            let own = OWN_HEADERS.contains(&header.to_ascii_lowercase().as_str());
            self.require(is_header_name(header) && !own, here, || {
                format!("{header:?} is no header that can be added")
            });
            let plain = !value.chars().any(|c| c.is_control() || c == '%');
            self.require(plain, here, || {
                "has a control character or a %, for commands of Envoy's are not supported".into()
            });
        }
        let question = HttpQuestion {
            path_prefix: prefix.clone(),
            shown,
            added: spec.include_additional_headers_in_check.clone().into_iter().collect(),
            to_upstream: self
                .header_patterns(at.field("headersToUpstreamOnAllow"), &spec.headers_to_upstream_on_allow),
            to_client_denied: self
                .header_patterns(at.field("headersToDownstreamOnDeny"), &spec.headers_to_downstream_on_deny),
            to_client_allowed: self.header_patterns(
                at.field("headersToDownstreamOnAllow"),
                &spec.headers_to_downstream_on_allow,
            ),
        };
        let body = spec.include_request_body_in_check.as_ref();
        self.require(
            !body.is_some_and(|body| body.pack_as_bytes),
            at.field("includeRequestBodyInCheck").field("packAsBytes"),
            || "is for gRPC only".into(),
        );
        let place = (spec.service.as_str(), spec.port);
        let rest =
            (spec.timeout.as_ref(), spec.fail_open, spec.clear_route_cache, spec.status_on_error.as_str());
        self.authorizer(at, name, place, rest, body, AskedOver::Http(question))
    }

    fn over_grpc(&mut self, at: Path<'_>, name: &str, spec: &schema::ExtAuthzGrpc) -> Option<Authorizer> {
        let place = (spec.service.as_str(), spec.port);
        let rest =
            (spec.timeout.as_ref(), spec.fail_open, spec.clear_route_cache, spec.status_on_error.as_str());
        self.authorizer(at, name, place, rest, spec.include_request_body_in_check.as_ref(), AskedOver::Grpc)
    }

    fn authorizer(
        &mut self,
        at: Path<'_>,
        name: &str,
        (service, port): (&str, u32),
        (timeout, fails_open, routes_anew, status): (Option<&String>, bool, bool, &str),
        body: Option<&schema::ExtAuthzBody>,
        over: AskedOver,
    ) -> Option<Authorizer> {
        let (namespace, name_of_host) = match service.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, service),
        };
        if let Some(namespace) = namespace {
            self.label_name(at.field("service"), namespace);
        }
        let host = match Host::parse_pattern(name_of_host) {
            Ok(host) if !host.is_wildcard() => Some(host),
            _ => {
                self.error(at.field("service"), format!("{service:?} is neither a host nor namespace/host"));
                None
            }
        };
        let status_on_error = match status {
            "" => None,
            text => {
                let code = text
                    .parse::<u16>()
                    .ok()
                    .filter(|code| STATUSES.iter().any(|(first, last)| (*first..=*last).contains(code)));
                self.require(code.is_some(), at.field("statusOnError"), || {
                    format!("{text:?} is no HTTP status")
                });
                code
            }
        };
        let body = body.map(|body| {
            self.require(
                body.max_request_bytes > 0,
                at.field("includeRequestBodyInCheck").field("maxRequestBytes"),
                || "must be greater than 0".into(),
            );
            ShownBody {
                most: body.max_request_bytes,
                partial: body.allow_partial_message,
                as_bytes: body.pack_as_bytes,
            }
        });
        Some(Authorizer {
            name: name.into(),
            namespace: namespace.map(Into::into),
            port: self.port(at.field("port"), port)?,
            host: host?,
            timeout: self.duration(at.field("timeout"), timeout),
            fails_open,
            routes_anew,
            status_on_error,
            body,
            over,
        })
    }

    /// Names of headers, each with a star before or behind.
    fn header_patterns(&mut self, at: Path<'_>, names: &[String]) -> Vec<TextMatch> {
        let mut patterns = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let here = at.index(index);
            match TextMatch::parse(&name.to_ascii_lowercase()) {
                TextMatch::Present => self.error(here, "a star alone is too much: name the headers"),
                pattern => {
                    let (TextMatch::Exact(rest) | TextMatch::Prefix(rest) | TextMatch::Suffix(rest)) =
                        &pattern
                    else {
                        continue;
                    };
                    self.require(is_header_name(rest) && !rest.contains('*'), here, || {
                        format!("{name:?} is no name of a header")
                    });
                    patterns.push(pattern);
                }
            }
        }
        patterns
    }
}

#[cfg(test)]
#[path = "extension_provider_tests.rs"]
mod tests;
