//! AuthorizationPolicy. With an error in it a policy that could refuse something fails closed for whom it covers.
//!
//! What needs metadata of an Envoy filter is not supported: such a policy fails closed too, and says so.

use std::sync::Arc;

use ipnet::IpNet;

use super::security::{ROOT, Read};
use super::{Check, Context, Path, is_header_name};
use crate::model::{
    Account, Authorization, AuthorizationAction, AuthorizationRule, Demand, PathMatch, RequestPrincipal,
    Test, TextMatch, Values,
};
use crate::store::schema::Metadata;
use crate::store::schema::authorization as schema;

/// Switches a policy to shadow mode.
const DRY_RUN: &str = "istio.io/dry-run";
/// What Go takes for true.
const TRUE: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];

/// Most rules of a policy, and sources of a rule.
const MAX_ENTRIES: usize = 512;
/// Most entries of `serviceAccounts`.
const MAX_ACCOUNTS: usize = 16;
/// Longest entry of `serviceAccounts`.
const MAX_ACCOUNT: usize = 320;

/// Characters of a segment beside a path template, beside letters and digits.
const LITERAL: &str = "-._~%!$&'()+,;:@=";

/// Longest path with an operator; Envoy takes no longer ones.
const MAX_TEMPLATE: usize = 256;

/// Reads an AuthorizationPolicy.
pub fn check(context: &Context, metadata: &Metadata, spec: &schema::AuthorizationPolicy) -> Read {
    let mut check = Check::new(context);
    let dry_run = metadata.annotations.get(DRY_RUN).is_some_and(|value| TRUE.contains(&value.as_str()));
    let action = match spec.action.unwrap_or(schema::Action::Allow) {
        schema::Action::Allow => AuthorizationAction::Allow,
        schema::Action::Deny => AuthorizationAction::Deny,
        schema::Action::Audit => AuthorizationAction::Audit,
        schema::Action::Custom => AuthorizationAction::Custom,
    };
    let provider = check.provider(action, spec.provider.as_ref());
    let without = match action {
        AuthorizationAction::Deny => {
            Some("must have a rule where action is DENY; `rules: [{}]` denies everything")
        }
        AuthorizationAction::Custom => {
            Some("must have a rule where action is CUSTOM; `rules: [{}]` asks about everything")
        }
        AuthorizationAction::Allow | AuthorizationAction::Audit => None,
    };
    if let Some(message) = without.filter(|_| spec.rules.is_empty()) {
        check.error(ROOT.field("rules"), message);
    }
    let rules = check.rules(&spec.rules);
    if action == AuthorizationAction::Custom {
        check.no_identities(&spec.rules);
    }
    if action == AuthorizationAction::Deny && !dry_run {
        check.warn_of_wide_rules(&rules);
    }
    let targets = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    let Some(covers) = check.covers(spec.selector.as_ref(), targets) else { return check.without_effect() };
    // An authorizer is asked even so, as by Istio.
    let dry_run = dry_run && !matches!(action, AuthorizationAction::Audit | AuthorizationAction::Custom);
    if (dry_run || action == AuthorizationAction::Audit) && check.has_errors() {
        // It refuses nothing as it is, so nothing has to be refused instead.
        return check.without_effect();
    }
    if check.has_errors() {
        let whom = check.whom(&covers);
        check.error(ROOT, format!("can't be enforced: everything that is sent to {whom} is refused"));
    }
    check.read(covers, Demand::Authorization(Authorization { action, dry_run, provider, rules }))
}

/// An attribute that `when` names.
enum Key<'k> {
    Header(&'k str),
    PeerIp,
    RemoteIp,
    Namespace,
    Principal,
    ServiceAccount,
    TrustDomain,
    DestinationIp,
    DestinationPort,
    ServerName,
    RequestPrincipal,
    /// By the names on the way to it.
    Claim(Vec<&'k str>),
    /// Known, and not supported.
    FilterMetadata,
}

impl<'k> Key<'k> {
    fn parse(key: &'k str) -> Option<Self> {
        if let Some(name) = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
            return (!name.is_empty()).then_some(Self::Header(name));
        }
        if let Some(path) = key.strip_prefix("request.auth.claims[").and_then(|rest| rest.strip_suffix(']')) {
            let names: Vec<&str> = path.split("][").collect();
            let plain = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
            return names.iter().all(plain).then_some(Self::Claim(names));
        }
        if key.starts_with("experimental.envoy.filters.") && key.ends_with(']') {
            return Some(Self::FilterMetadata);
        }
        Some(match key {
            "source.ip" => Self::PeerIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::Namespace,
            "source.principal" => Self::Principal,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ServerName,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Claim(vec!["aud"]),
            "request.auth.presenter" => Self::Claim(vec!["azp"]),
            _ => return None,
        })
    }
}

/// A list and its negation, each with its name.
type Lists<'l> = [(&'l str, &'l [String]); 2];

/// Lists of a source that are about who the caller is.
fn identities(source: &schema::Source) -> Vec<(&'static str, &Vec<String>)> {
    vec![
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ]
}

impl Check<'_> {
    /// Who is asked.
    fn provider(
        &mut self,
        action: AuthorizationAction,
        provider: Option<&schema::Provider>,
    ) -> Option<Arc<str>> {
        let at = ROOT.field("provider");
        if action != AuthorizationAction::Custom {
            self.require(provider.is_none(), at, || "is for action CUSTOM only".into());
            return None;
        }
        let name = provider.map(|provider| provider.name.as_str()).filter(|name| !name.is_empty());
        self.require(name.is_some(), at.field("name"), || "is required where action is CUSTOM".into());
        name.map(Into::into)
    }

    /// An authorizer is asked before it is known whose token a request has, and Istio lets no rule for it ask who the caller is.
    fn no_identities(&mut self, rules: &[schema::Rule]) {
        let at = ROOT.field("rules");
        for (index, rule) in rules.iter().enumerate() {
            let at = at.index(index);
            for (index, from) in rule.from.iter().flatten().enumerate() {
                let at = at.field("from");
                let at = at.index(index);
                let at = at.field("source");
                for (name, list) in from.source.iter().flat_map(identities) {
                    self.require(list.is_empty(), at.field(name), || {
                        "can't be tested where action is CUSTOM".into()
                    });
                }
            }
            for (index, condition) in rule.when.iter().flatten().enumerate() {
                let at = at.field("when");
                let at = at.index(index);
                let identity = matches!(
                    Key::parse(&condition.key),
                    Some(
                        Key::Namespace
                            | Key::Principal
                            | Key::ServiceAccount
                            | Key::TrustDomain
                            | Key::RequestPrincipal
                            | Key::Claim(_)
                    )
                );
                self.require(!identity, at.field("key"), || "can't be tested where action is CUSTOM".into());
            }
        }
    }

    fn rules(&mut self, rules: &[schema::Rule]) -> Vec<AuthorizationRule> {
        let at = ROOT.field("rules");
        self.at_most(at, rules.len(), MAX_ENTRIES);
        rules.iter().enumerate().map(|(index, rule)| self.rule(at.index(index), rule)).collect()
    }

    fn rule(&mut self, at: Path<'_>, rule: &schema::Rule) -> AuthorizationRule {
        let mut read = AuthorizationRule::default();
        if let Some(from) = &rule.from {
            let at = at.field("from");
            self.not_empty(at, from.len());
            self.at_most(at, from.len(), MAX_ENTRIES);
            for (index, from) in from.iter().enumerate() {
                let here = at.index(index);
                let here = here.field("source");
                let tests = from.source.as_ref().map(|source| self.source(here, source)).unwrap_or_default();
                self.some_field(here, from.source.as_ref().is_some_and(|s| *s != schema::Source::default()));
                read.from.push(tests);
            }
        }
        if let Some(to) = &rule.to {
            let at = at.field("to");
            self.not_empty(at, to.len());
            for (index, to) in to.iter().enumerate() {
                let here = at.index(index);
                let here = here.field("operation");
                let tests = to.operation.as_ref().map(|it| self.operation(here, it)).unwrap_or_default();
                self.some_field(
                    here,
                    to.operation.as_ref().is_some_and(|o| *o != schema::Operation::default()),
                );
                read.to.push(tests);
            }
        }
        if let Some(when) = &rule.when {
            let at = at.field("when");
            self.not_empty(at, when.len());
            for (index, condition) in when.iter().enumerate() {
                read.when.extend(self.condition(at.index(index), condition));
            }
        }
        read
    }

    fn not_empty(&mut self, at: Path<'_>, length: usize) {
        self.require(length > 0, at, || "must not be an empty list; leave it out to match everything".into());
    }

    fn at_most(&mut self, at: Path<'_>, length: usize, most: usize) {
        self.require(length <= most, at, || format!("has {length} entries, {most} are allowed"));
    }

    fn some_field(&mut self, at: Path<'_>, some: bool) {
        self.require(some, at, || "must have a field; leave the entry out to match everything".into());
    }

    fn source(&mut self, at: Path<'_>, source: &schema::Source) -> Vec<Test> {
        let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        if accounts && others.iter().any(|list| !list.is_empty()) {
            self.error(at.field("serviceAccounts"), "excludes principals and namespaces in the same source");
        }
        let tests = [
            self.values(
                at,
                [("principals", &source.principals), ("notPrincipals", &source.not_principals)],
                Self::principal,
            )
            .map(Test::Principal),
            self.values(
                at,
                [
                    ("requestPrincipals", &source.request_principals),
                    ("notRequestPrincipals", &source.not_request_principals),
                ],
                Self::request_principal,
            )
            .map(Test::RequestPrincipal),
            self.values(
                at,
                [("namespaces", &source.namespaces), ("notNamespaces", &source.not_namespaces)],
                Self::plain,
            )
            .map(Test::Namespace),
            self.values(
                at,
                [
                    ("serviceAccounts", &source.service_accounts),
                    ("notServiceAccounts", &source.not_service_accounts),
                ],
                Self::account,
            )
            .map(Test::ServiceAccount),
            self.values(
                at,
                [("trustDomains", &source.trust_domains), ("notTrustDomains", &source.not_trust_domains)],
                Self::trust_domain,
            )
            .map(Test::TrustDomain),
            self.values(
                at,
                [("ipBlocks", &source.ip_blocks), ("notIpBlocks", &source.not_ip_blocks)],
                Self::ip_block,
            )
            .map(Test::PeerIp),
            self.values(
                at,
                [
                    ("remoteIpBlocks", &source.remote_ip_blocks),
                    ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
                ],
                Self::ip_block,
            )
            .map(Test::RemoteIp),
        ];
        for (name, list) in [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ] {
            self.at_most(at.field(name), list.len(), MAX_ACCOUNTS);
        }
        tests.into_iter().flatten().collect()
    }

    fn operation(&mut self, at: Path<'_>, operation: &schema::Operation) -> Vec<Test> {
        let tests = [
            self.values(at, [("hosts", &operation.hosts), ("notHosts", &operation.not_hosts)], Self::text)
                .map(Test::Host),
            self.values(
                at,
                [("ports", &operation.ports), ("notPorts", &operation.not_ports)],
                Self::port_text,
            )
            .map(Test::Port),
            self.values(
                at,
                [("methods", &operation.methods), ("notMethods", &operation.not_methods)],
                Self::text,
            )
            .map(Test::Method),
            self.values(at, [("paths", &operation.paths), ("notPaths", &operation.not_paths)], Self::path)
                .map(Test::Path),
        ];
        tests.into_iter().flatten().collect()
    }

    fn condition(&mut self, at: Path<'_>, condition: &schema::Condition) -> Option<Test> {
        let lists: Lists<'_> = [("values", &condition.values), ("notValues", &condition.not_values)];
        if condition.values.is_empty() && condition.not_values.is_empty() {
            self.error(at, "needs values or notValues");
        }
        let Some(key) = Key::parse(&condition.key) else {
            self.error(
                at.field("key"),
                format!("{:?} is no attribute that a condition can be on", condition.key),
            );
            return None;
        };
        match key {
            Key::RequestPrincipal => {
                return self.values(at, lists, Self::request_principal).map(Test::RequestPrincipal);
            }
            Key::Claim(path) => {
                let path = path.into_iter().map(Into::into).collect();
                return self.values(at, lists, Self::text).map(|values| Test::Claim(path, values));
            }
            Key::FilterMetadata => {
                self.error(at.field("key"), "is not supported: there is no metadata of Envoy filters");
            }
            Key::Header(name) => {
                self.require(is_header_name(name), at.field("key"), || {
                    format!("{name:?} is no name of a header")
                });
                return self.values(at, lists, Self::text).map(|values| Test::Header(name.into(), values));
            }
            Key::PeerIp => return self.values(at, lists, Self::ip_block).map(Test::PeerIp),
            Key::RemoteIp => return self.values(at, lists, Self::ip_block).map(Test::RemoteIp),
            Key::Namespace => return self.values(at, lists, Self::plain).map(Test::Namespace),
            Key::Principal => return self.values(at, lists, Self::principal).map(Test::Principal),
            Key::ServiceAccount => return self.values(at, lists, Self::account).map(Test::ServiceAccount),
            Key::TrustDomain => return self.values(at, lists, Self::trust_domain).map(Test::TrustDomain),
            Key::DestinationIp => return self.values(at, lists, Self::ip_block).map(Test::DestinationIp),
            Key::DestinationPort => return self.values(at, lists, Self::port_text).map(Test::Port),
            Key::ServerName => return self.values(at, lists, Self::text).map(Test::ServerName),
        }
        None
    }

    /// Both lists of an attribute; `None` where neither says anything.
    fn values<T>(
        &mut self,
        at: Path<'_>,
        lists: Lists<'_>,
        parse: fn(&mut Self, Path<'_>, &str) -> Option<T>,
    ) -> Option<Values<T>> {
        let [any_of, none_of] = lists.map(|(name, list)| {
            let at = at.field(name);
            let mut values = Vec::with_capacity(list.len());
            for (index, text) in list.iter().enumerate() {
                let here = at.index(index);
                match text.as_str() {
                    "" => self.error(here, "is empty"),
                    text => values.extend(parse(self, here, text)),
                }
            }
            values
        });
        (!any_of.is_empty() || !none_of.is_empty()).then_some(Values { any_of, none_of })
    }

    fn text(&mut self, at: Path<'_>, text: &str) -> Option<TextMatch> {
        let value = TextMatch::parse(text);
        let rest = match &value {
            TextMatch::Exact(rest) | TextMatch::Prefix(rest) | TextMatch::Suffix(rest) => &**rest,
            TextMatch::Present => "",
        };
        if rest.contains('*') {
            self.warn(at, format!("{text:?} has a star that is compared as a star: one alone, or first, or else last, stands for others"));
        }
        Some(value)
    }

    fn plain(&mut self, _: Path<'_>, text: &str) -> Option<Arc<str>> {
        Some(text.into())
    }

    fn principal(&mut self, at: Path<'_>, text: &str) -> Option<TextMatch> {
        if text.starts_with("spiffe://") {
            self.warn(at, "matches nobody: principals are written without spiffe://");
        }
        self.text(at, text)
    }

    fn request_principal(&mut self, _: Path<'_>, text: &str) -> Option<RequestPrincipal> {
        Some(RequestPrincipal::parse(text))
    }

    fn account(&mut self, at: Path<'_>, text: &str) -> Option<Account> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (namespace.into(), name),
            None => (self.namespace().clone(), text),
        };
        if text.len() > MAX_ACCOUNT {
            self.error(at, format!("has {} characters, {MAX_ACCOUNT} are allowed", text.len()));
        } else if text.contains('*') {
            self.error(at, format!("{text:?} has a star, and accounts are compared whole"));
        } else if namespace.is_empty() || name.is_empty() || name.contains('/') {
            self.error(at, format!("{text:?} is neither an account nor namespace/account"));
        } else {
            return Some(Account { namespace, name: name.into() });
        }
        None
    }

    fn trust_domain(&mut self, at: Path<'_>, text: &str) -> Option<Arc<str>> {
        let inner = text.strip_prefix('*').unwrap_or(text);
        let inner = if inner == text { text.strip_suffix('*').unwrap_or(text) } else { inner };
        if text.contains('/') {
            self.error(at, format!("{text:?} has a slash: a trust domain alone is wanted"));
        } else if inner.contains('*') {
            self.error(at, format!("{text:?} has a star that is neither its beginning nor its end"));
        } else {
            return Some(text.into());
        }
        None
    }

    fn ip_block(&mut self, at: Path<'_>, text: &str) -> Option<IpNet> {
        let parsed =
            text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<std::net::IpAddr>().ok()?.into()));
        if parsed.is_none() {
            self.error(at, format!("{text:?} is neither an IP address nor a range of them"));
        }
        parsed.map(|net| net.trunc())
    }

    fn port_text(&mut self, at: Path<'_>, text: &str) -> Option<u16> {
        // Signs and the like are not what a port is written with.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|_| digits);
        if port.is_none() {
            self.error(at, format!("{text:?} is no port number (0 to 65535)"));
        }
        port
    }

    fn path(&mut self, at: Path<'_>, text: &str) -> Option<PathMatch> {
        if !text.contains(['{', '}']) {
            return self.text(at, text).map(PathMatch::Text);
        }
        match template(text) {
            Ok(template) if template.len() > MAX_TEMPLATE => {
                self.error(at, format!("has {} characters, {MAX_TEMPLATE} are allowed", template.len()));
                None
            }
            Ok(template) => Some(PathMatch::Template(template.into())),
            Err(error) => {
                self.error(at, format!("{text:?} {error}"));
                None
            }
        }
    }

    /// Rules of DENY that lose all their tests on a TCP port, and so deny everything there.
    fn warn_of_wide_rules(&mut self, rules: &[AuthorizationRule]) {
        let at = ROOT.field("rules");
        for (index, rule) in rules.iter().enumerate() {
            if rule.tests().next().is_some() && rule.tests().all(Test::is_http_only) {
                let text = "tests HTTP only and names no ports: on TCP ports it denies every connection";
                self.warn(at.index(index), text);
            }
        }
    }
}

/// A path template in the words of the proxy: `*` and `**` as whole segments.
fn template(text: &str) -> Result<String, String> {
    let Some(rest) = text.strip_prefix('/') else { return Err("must begin with a slash".into()) };
    let (mut written, mut open) = (String::with_capacity(text.len()), false);
    let last = rest.split('/').count() - 1;
    for (index, segment) in rest.split('/').enumerate() {
        written.push('/');
        match segment {
            "{*}" | "{**}" if open => return Err("has an operator after {**}".into()),
            "{*}" => written.push('*'),
            "{**}" => {
                open = true;
                written.push_str("**");
            }
            "" if index != last => return Err("has an empty segment beside an operator".into()),
            segment => {
                let odd = segment.chars().find(|c| !c.is_ascii_alphanumeric() && !LITERAL.contains(*c));
                if let Some(odd) = odd {
                    return Err(format!(
                        "has {odd:?} in {segment:?}: beside the operators {{*}} and {{**}}, which are whole segments, only {LITERAL} and letters and digits are allowed"
                    ));
                }
                written.push_str(segment);
            }
        }
    }
    Ok(written)
}

#[cfg(test)]
#[path = "authorization_tests.rs"]
mod tests;
