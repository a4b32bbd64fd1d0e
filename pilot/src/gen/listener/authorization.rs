//! RBAC filters from AuthorizationPolicies, in Istio's shape: one filter per action, each with all policies of that action, enforced
//! and dry-run apart, in the order AUDIT, DENY, ALLOW; what is asked about elsewhere comes before them (`authorizer`).
//!
//! Opaque connections have no attributes of HTTP. There a rule of ALLOW that tests one matches nothing; in one of DENY, AUDIT or CUSTOM such
//! a test is left out, so that it matches more: either way less gets through. What can't be enforced denies everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use osier_proto::Any;
use osier_proto::types::core::{CidrRange, TypedExtensionConfig};
use osier_proto::types::http_connection_manager::HttpFilter;
use osier_proto::types::http_rbac;
use osier_proto::types::listener::{Filter, FilterChain};
use osier_proto::types::matcher::{
    ListMatcher, MetadataMatcher, OrMatcher, PathMatcher, RegexMatcher, StringMatcher, ValueMatcher,
    list_matcher, metadata_matcher::PathSegment, metadata_matcher::path_segment::Segment, path_matcher,
    string_matcher::MatchPattern, value_matcher::MatchPattern as OnValue,
};
use osier_proto::types::network_rbac;
use osier_proto::types::rbac::{
    Permission, Policy, Principal, Rbac, permission,
    permission::Rule as Permit,
    principal::{self, Authenticated, Identifier},
    rbac::Action,
};
use osier_proto::types::route::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use osier_proto::types::uri_template::UriTemplateMatchConfig;

use ipnet::IpNet;

use super::authentication;
use super::authorizer::{Custom, MARK};
use super::filter::http_filter;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{
    Account, Authorization, AuthorizationAction, AuthorizationRule, Demand, MeshConfig, PathMatch, Protocol,
    RequestPrincipal, ResourceKey, Test, TextMatch, Values,
};

/// Istio's prefix for the counts of network filters.
const TCP_STATS: &str = "tcp.";

/// The HTTP filters that have external authorizers asked, before anybody looks at tokens.
pub(super) fn asked_http(scope: &Scope<'_>) -> Vec<HttpFilter> {
    custom(scope, Over::Http).map(|custom| custom.http()).unwrap_or_default()
}

/// The HTTP filters of a listener of the workload.
pub(super) fn http(scope: &Scope<'_>) -> Vec<HttpFilter> {
    let filter = |set: Set| {
        let rbac = http_rbac::Rbac {
            shadow_rules_stat_prefix: set.shadow_prefix().to_string(),
            rules: set.enforced,
            shadow_rules: set.shadow,
            ..Default::default()
        };
        http_filter("envoy.filters.http.rbac", &rbac)
    };
    sets(scope, Over::Http).into_iter().map(filter).collect()
}

/// A chain of opaque bytes, at a port of this protocol, with the network filters of the workload before its own.
pub(super) fn guard(scope: &Scope<'_>, protocol: Protocol, mut chain: FilterChain) -> FilterChain {
    let filter = |set: Set| -> Filter {
        let rbac = network_rbac::Rbac {
            shadow_rules_stat_prefix: set.shadow_prefix().to_string(),
            rules: set.enforced,
            shadow_rules: set.shadow,
            stat_prefix: TCP_STATS.to_string(),
            ..Default::default()
        };
        wire::network_filter("envoy.filters.network.rbac", &rbac)
    };
    let asked = custom(scope, Over::Tcp).map(|custom| custom.tcp(protocol)).unwrap_or_default();
    let guards = asked.into_iter().chain(sets(scope, Over::Tcp).into_iter().map(filter));
    chain.filters.splice(0..0, guards);
    chain
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Http,
    Tcp,
}

/// The policies of one action.
struct Set {
    action: AuthorizationAction,
    enforced: Option<Rbac>,
    shadow: Option<Rbac>,
}

impl Set {
    fn shadow_prefix(&self) -> &'static str {
        match (&self.shadow, self.action) {
            (Some(_), AuthorizationAction::Allow) => "istio_dry_run_allow_",
            (Some(_), AuthorizationAction::Deny) => "istio_dry_run_deny_",
            _ => "",
        }
    }
}

/// What is asked about elsewhere, if anything is.
fn custom<'s>(scope: &Scope<'s>, over: Over) -> Option<Custom<'s>> {
    let policies = scope.snapshot.authorizations(&scope.view().proxy);
    let policies = policies.into_iter().filter(|(_, policy)| policy.action == AuthorizationAction::Custom);
    let (mut providers, mut rules) = (BTreeSet::new(), BTreeMap::new());
    for (key, policy) in policies {
        providers.extend(policy.provider.clone());
        let named = of_policy(scope, key, policy, over).into_iter();
        rules.extend(named.map(|(name, rule)| (format!("{MARK}-{name}"), rule)));
    }
    if rules.is_empty() {
        return None;
    }
    let found = scope.snapshot.authorizer(&scope.view().proxy.namespace, &providers);
    Some(Custom { rules, authorizer: found.map(|(authorizer, service)| (authorizer, &**service)) })
}

fn sets(scope: &Scope<'_>, over: Over) -> Vec<Set> {
    if let Some(refusal) = scope.snapshot.refusal(&scope.view().proxy, 0)
        && refusal.0.demands == Demand::Unsupported
    {
        return vec![deny_all(&refusal.to_string())];
    }
    // gRPC libraries verify no tokens.
    if scope.view().is_grpc()
        && let [(key, _), ..] = scope.snapshot.token_rules(&scope.view().proxy)[..]
    {
        return vec![deny_all(&format!("{key} is not supported by gRPC"))];
    }
    let policies = scope.snapshot.authorizations(&scope.view().proxy);
    // Nor do they ask anybody.
    let asks = |(_, policy): &&(&ResourceKey, &Authorization)| policy.action == AuthorizationAction::Custom;
    if scope.view().is_grpc()
        && let Some((key, _)) = policies.iter().find(asks)
    {
        return vec![deny_all(&format!("{key} is not supported by gRPC"))];
    }
    let actions = [AuthorizationAction::Audit, AuthorizationAction::Deny, AuthorizationAction::Allow];
    let of = |action: AuthorizationAction| {
        let rbac = |dry_run: bool| {
            let mut chosen =
                policies.iter().filter(|(_, a)| a.action == action && a.dry_run == dry_run).peekable();
            chosen.peek()?;
            // A filter of ALLOW without a rule that can match denies everything, as it must.
            let rules = chosen.flat_map(|(key, policy)| of_policy(scope, key, policy, over));
            Some(Rbac { action: rbac_action(action) as i32, policies: rules.collect() })
        };
        let (enforced, shadow) = (rbac(false), rbac(true));
        (enforced.is_some() || shadow.is_some()).then_some(Set { action, enforced, shadow })
    };
    actions.into_iter().filter_map(of).collect()
}

fn rbac_action(action: AuthorizationAction) -> Action {
    match action {
        AuthorizationAction::Audit => Action::Log,
        AuthorizationAction::Deny | AuthorizationAction::Custom => Action::Deny,
        AuthorizationAction::Allow => Action::Allow,
    }
}

/// What can't be enforced denies everything, under a name that says why.
fn deny_all(cause: &str) -> Set {
    let everything = Policy { permissions: vec![permit_any()], principals: vec![anybody()] };
    let policies = [(cause.to_string(), everything)].into();
    let enforced = Some(Rbac { action: Action::Deny as i32, policies });
    Set { action: AuthorizationAction::Deny, enforced, shadow: None }
}

/// The rules of a policy that can match, each under Istio's name for it.
fn of_policy(
    scope: &Scope<'_>,
    key: &ResourceKey,
    policy: &Authorization,
    over: Over,
) -> Vec<(String, Policy)> {
    let name = |index| format!("ns[{}]-policy[{}]-rule[{index}]", key.namespace, key.name);
    let can_match = |rule: &AuthorizationRule| {
        over == Over::Http
            || policy.action != AuthorizationAction::Allow
            || !rule.tests().any(Test::is_http_only)
    };
    let rules = policy.rules.iter().enumerate().filter(|(_, rule)| can_match(rule));
    rules.map(|(index, rule)| (name(index), of_rule(scope, rule, over))).collect()
}

fn of_rule(scope: &Scope<'_>, rule: &AuthorizationRule, over: Over) -> Policy {
    let there = |test: &&Test| over == Over::Http || !test.is_http_only();
    let permissions = or_anything(&rule.to).iter().map(|tests| {
        let tests = tests.iter().chain(rule.when.iter().filter(|test| !test.is_of_caller())).filter(there);
        let mut rules: Vec<Permission> = tests.flat_map(|test| permissions(scope, test)).collect();
        if rules.is_empty() {
            rules.push(permit_any());
        }
        permit(Permit::AndRules(permission::Set { rules }))
    });
    let principals = or_anything(&rule.from).iter().map(|tests| {
        let tests = tests.iter().chain(rule.when.iter().filter(|test| test.is_of_caller())).filter(there);
        let mut ids: Vec<Principal> = tests.flat_map(|test| principals(scope.mesh(), test)).collect();
        if ids.is_empty() {
            ids.push(anybody());
        }
        identify(Identifier::AndIds(principal::Set { ids }))
    });
    Policy { permissions: permissions.collect(), principals: principals.collect() }
}

/// Without a source or operation, one that tests nothing.
fn or_anything(lists: &[Vec<Test>]) -> &[Vec<Test>] {
    const ANYTHING: &[Vec<Test>] = &[Vec::new()];
    if lists.is_empty() { ANYTHING } else { lists }
}

fn permit(rule: Permit) -> Permission {
    Permission { rule: Some(rule) }
}

fn permit_any() -> Permission {
    permit(Permit::Any(true))
}

fn identify(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn anybody() -> Principal {
    identify(Identifier::Any(true))
}

/// One of the values, and none of the others.
fn permissions(scope: &Scope<'_>, test: &Test) -> Vec<Permission> {
    match test {
        Test::Host(values) => permitted(values, |host| Permit::Header(header(":authority", host, true))),
        Test::Method(values) => permitted(values, |method| Permit::Header(header(":method", method, false))),
        Test::Port(values) => permitted(values, |port| Permit::DestinationPort(u32::from(*port))),
        Test::Path(values) => permitted(values, |path| on_path(path, scope.view().is_grpc())),
        Test::DestinationIp(values) => permitted(values, |net| Permit::DestinationIp(range(net))),
        Test::ServerName(values) => {
            permitted(values, |name| Permit::RequestedServerName(text(name, "", false)))
        }
        _ => Vec::new(),
    }
}

fn permitted<T>(values: &Values<T>, one: impl Fn(&T) -> Permit) -> Vec<Permission> {
    let any = |values: &[T]| {
        let rules: Vec<Permission> = values.iter().map(&one).map(permit).collect();
        (!rules.is_empty()).then(|| permit(Permit::OrRules(permission::Set { rules })))
    };
    let none = any(&values.none_of).map(|any| permit(Permit::NotRule(Box::new(any))));
    any(&values.any_of).into_iter().chain(none).collect()
}

fn principals(mesh: &MeshConfig, test: &Test) -> Vec<Principal> {
    let named = |name: StringMatcher| Identifier::Authenticated(Authenticated { principal_name: Some(name) });
    match test {
        Test::Principal(values) => identified(values, |principal| {
            with_aliases(mesh, principal).iter().map(|p| named(text(p, "spiffe://", false))).collect()
        }),
        Test::Namespace(values) => identified(values, |namespace| {
            let parts: Vec<String> = namespace.split('*').map(quoted).collect();
            vec![named(regex(format!(".*/ns/{}/.*", parts.join(".*"))))]
        }),
        Test::ServiceAccount(values) => identified(values, |Account { namespace, name }| {
            let (namespace, name) = (quoted(namespace), quoted(name));
            vec![named(regex(format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?")))]
        }),
        Test::TrustDomain(values) => identified(values, |domain| {
            domain_with_aliases(mesh, domain).iter().map(|domain| named(trust_domain(domain))).collect()
        }),
        Test::PeerIp(values) => identified(values, |net| vec![Identifier::DirectRemoteIp(range(net))]),
        Test::RemoteIp(values) => identified(values, |net| vec![Identifier::RemoteIp(range(net))]),
        Test::RequestPrincipal(values) => identified(values, |RequestPrincipal { issuer, subject }| {
            let both = [("iss", issuer), ("sub", subject)];
            let ids = both.map(|(name, value)| identify(claim(&[name.into()], on_text(value))));
            vec![Identifier::AndIds(principal::Set { ids: ids.into() })]
        }),
        Test::Claim(path, values) => identified(values, |value| {
            let list = ListMatcher {
                match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(on_text(value)))),
            };
            let list = ValueMatcher { match_pattern: Some(OnValue::ListMatch(Box::new(list))) };
            let either = OrMatcher { value_matchers: vec![list, on_text(value)] };
            vec![claim(path, ValueMatcher { match_pattern: Some(OnValue::OrMatch(either)) })]
        }),
        Test::Header(name, values) => {
            identified(values, |value| vec![Identifier::Header(header(name, value, false))])
        }
        _ => Vec::new(),
    }
}

fn identified<T>(values: &Values<T>, one: impl Fn(&T) -> Vec<Identifier>) -> Vec<Principal> {
    let any = |values: &[T]| {
        let ids: Vec<Principal> = values.iter().flat_map(&one).map(identify).collect();
        (!ids.is_empty()).then(|| identify(Identifier::OrIds(principal::Set { ids })))
    };
    let none = any(&values.none_of).map(|any| identify(Identifier::NotId(Box::new(any))));
    any(&values.any_of).into_iter().chain(none).collect()
}

/// A condition on a claim of the request's token.
fn claim(path: &[Arc<str>], value: ValueMatcher) -> Identifier {
    let key = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_string())) };
    Identifier::Metadata(MetadataMatcher {
        filter: authentication::FILTER.into(),
        path: std::iter::once(key(authentication::PAYLOAD))
            .chain(path.iter().map(|name| key(name)))
            .collect(),
        value: Some(value),
        invert: false,
    })
}

fn on_text(value: &TextMatch) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(OnValue::StringMatch(text(value, "", false))) }
}

fn range(net: &IpNet) -> CidrRange {
    wire::range(net.network(), net.prefix_len())
}

fn header(name: &str, value: &TextMatch, ignore_case: bool) -> HeaderMatcher {
    let specifier = match value {
        TextMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
        value => HeaderMatchSpecifier::StringMatch(text(value, "", ignore_case)),
    };
    HeaderMatcher { name: name.to_string(), header_match_specifier: Some(specifier), ..Default::default() }
}

/// A text after a constant part.
fn text(value: &TextMatch, before: &str, ignore_case: bool) -> StringMatcher {
    let pattern = match value {
        TextMatch::Exact(text) => MatchPattern::Exact(format!("{before}{text}")),
        TextMatch::Prefix(text) => MatchPattern::Prefix(format!("{before}{text}")),
        TextMatch::Suffix(text) if before.is_empty() => MatchPattern::Suffix(text.to_string()),
        TextMatch::Suffix(text) => return regex(format!("{before}.*{}", quoted(text))),
        TextMatch::Present => return regex(".+".into()),
    };
    StringMatcher { match_pattern: Some(pattern), ignore_case }
}

fn regex(regex: String) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher { regex })), ignore_case: false }
}

/// A text in a regex, as Go quotes it.
fn quoted(text: impl AsRef<str>) -> String {
    let mut quoted = String::new();
    for c in text.as_ref().chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// gRPC knows no templates: there they are regexes.
fn on_path(path: &PathMatch, grpc: bool) -> Permit {
    let on = |path| Permit::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(path)) });
    match path {
        PathMatch::Text(value) => on(text(value, "", false)),
        PathMatch::Template(template) if grpc => {
            let segment = |segment: &str| match segment {
                "*" => "[^/]+".to_string(),
                "**" => ".*".to_string(),
                literal => quoted(literal),
            };
            on(regex(template.split('/').map(segment).collect::<Vec<_>>().join("/")))
        }
        PathMatch::Template(template) => Permit::UriTemplate(TypedExtensionConfig {
            name: "uri-template".into(),
            typed_config: Some(Any::pack(&UriTemplateMatchConfig { path_template: template.to_string() })),
        }),
    }
}

fn trust_domain(domain: &str) -> StringMatcher {
    match domain.split_once('*') {
        None => text(&TextMatch::Prefix(format!("{domain}/").into()), "spiffe://", false),
        Some(("", "")) => text(&TextMatch::Prefix("".into()), "spiffe://", false),
        Some((start, end)) => regex(format!("spiffe://{}[^/]*{}/.*", quoted(start), quoted(end))),
    }
}

/// A principal in each of the mesh's trust domains, where it is written in one of them.
fn with_aliases(mesh: &MeshConfig, principal: &TextMatch) -> Vec<TextMatch> {
    // The star is part of what is compared, so the text is taken as it was written.
    let written = match principal {
        TextMatch::Exact(text) => text.to_string(),
        TextMatch::Prefix(text) => format!("{text}*"),
        TextMatch::Suffix(text) => format!("*{text}"),
        TextMatch::Present => return vec![principal.clone()],
    };
    let parts: Vec<&str> = written.split('/').collect();
    let [domain, rest @ ..] = &parts[..] else { return vec![principal.clone()] };
    let ends_alike = |own: &str| domain.strip_prefix('*').is_some_and(|end| own.ends_with(end));
    let ours =
        *domain == "cluster.local" || mesh.trust_domains().any(|own| own == *domain || ends_alike(own));
    if rest.len() != 4 || *domain == "*" || !ours {
        return vec![principal.clone()];
    }
    let mut found = Vec::new();
    for own in mesh.trust_domains() {
        let one = match ends_alike(own) {
            true => principal.clone(),
            false => TextMatch::parse(&format!("{own}/{}", rest.join("/"))),
        };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn domain_with_aliases(mesh: &MeshConfig, domain: &str) -> Vec<String> {
    match mesh.trust_domains().any(|own| own == domain) {
        true => mesh.trust_domains().map(str::to_owned).collect(),
        false => vec![domain.to_owned()],
    }
}
