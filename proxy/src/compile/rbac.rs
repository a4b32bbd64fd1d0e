//! RBAC filters, of HTTP connection managers and of chains: who may do what.
//!
//! Regexes in the forms that Istio's policies become are taken for what they mean, which costs a tenth at each request; the meaning
//! is the same for every name that a certificate can have.

use osier_proto::types::{
    core, http_rbac, matcher as messages, network_rbac,
    rbac::{self as xds, permission::Rule as Permitted, principal::Identifier, rbac::Action as XdsAction},
    uri_template::UriTemplateMatchConfig,
};

use super::value::{enumeration, extension, not_empty, range, required, unsupported_extension};
use super::{At, Invalid, jwt, matcher};
use crate::authz::counters::{ByPolicy, Counters, Place};
use crate::authz::{
    Action, Condition, Denial, Filter, Glob, NameMatch, Namespace, PathTemplate, Rule, Rules, ServiceAccount,
};

/// What a denial is called that no rule made.
const NO_POLICY: &str = "none";

/// A filter of an HTTP connection manager.
pub(super) fn http(
    message: &http_rbac::Rbac,
    stat_prefix: &str,
    counters: &Counters,
) -> Result<Filter, Invalid> {
    let place = |own: &str, shadow| Place::http(stat_prefix, own, shadow);
    let enforced = place(&message.rules_stat_prefix, false);
    let shadow = place(&message.shadow_rules_stat_prefix, true);
    filter(message.rules.as_ref(), enforced, message.shadow_rules.as_ref(), shadow, counters)
}

/// A filter of a chain.
pub(super) fn network(message: &network_rbac::Rbac, counters: &Counters) -> Result<Filter, Invalid> {
    not_empty("stat_prefix", &message.stat_prefix)?;
    enumeration::<network_rbac::rbac::EnforcementType>("enforcement_type", message.enforcement_type)?;
    let enforced = Place::network(&message.stat_prefix, "", false);
    let shadow = Place::network(&message.stat_prefix, &message.shadow_rules_stat_prefix, true);
    filter(message.rules.as_ref(), enforced, message.shadow_rules.as_ref(), shadow, counters)
}

fn filter(
    enforced: Option<&xds::Rbac>,
    place: Place,
    shadow: Option<&xds::Rbac>,
    shadow_place: Place,
    counters: &Counters,
) -> Result<Filter, Invalid> {
    let compile = |message: Option<&xds::Rbac>, place: Place| {
        let Some(message) = message else { return Ok(None) };
        Ok(Some((rules(message, place.shadow, counters)?, counters.tally(place))))
    };
    Ok(Filter {
        enforced: compile(enforced, place).at("rules")?,
        shadow: compile(shadow, shadow_place).at("shadow_rules")?,
    })
}

fn rules(message: &xds::Rbac, shadow: bool, counters: &Counters) -> Result<Rules, Invalid> {
    let action = match enumeration("action", message.action)? {
        XdsAction::Allow => Action::Allow,
        XdsAction::Deny => Action::Deny,
        XdsAction::Log => Action::Log,
    };
    let denied = if shadow { ByPolicy::ShadowDenied } else { ByPolicy::Denied };
    let denial = |name: &str| {
        let count = match action {
            Action::Allow => Default::default(),
            Action::Deny => counters.policy(denied, name),
            Action::Log => counters.policy(ByPolicy::Logged, name),
        };
        Denial::new(name, count)
    };
    let rule = |(name, policy): (&String, &xds::Policy)| {
        let compile = || {
            let permission = one_of("permissions", &policy.permissions, permission, Condition::any_of)?;
            let principal = one_of("principals", &policy.principals, principal, Condition::any_of)?;
            Ok(Rule { condition: Condition::all_of(vec![permission, principal]), denial: denial(name) })
        };
        compile().at(&format!("policies[\"{name}\"]"))
    };
    let rules: Result<Box<[Rule]>, Invalid> = message.policies.iter().map(rule).collect();
    let unmatched = match action {
        Action::Allow => Denial::new(NO_POLICY, counters.policy(denied, NO_POLICY)),
        Action::Deny | Action::Log => Denial::new(NO_POLICY, Default::default()),
    };
    Ok(Rules { action, rules: rules?, unmatched })
}

/// A list that must not be empty, joined to one condition.
fn one_of<M>(
    field: &str,
    messages: &[M],
    compile: fn(&M) -> Result<Condition, Invalid>,
    join: fn(Vec<Condition>) -> Condition,
) -> Result<Condition, Invalid> {
    if messages.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    let compile = |(index, message)| compile(message).at_index(field, index);
    let conditions: Result<Vec<_>, Invalid> = messages.iter().enumerate().map(compile).collect();
    conditions.map(join)
}

fn permission(message: &xds::Permission) -> Result<Condition, Invalid> {
    let all =
        |field, set: &xds::permission::Set, join| one_of("rules", &set.rules, permission, join).at(field);
    Ok(match required("rule", message.rule.as_ref())? {
        Permitted::AndRules(set) => all("and_rules", set, Condition::all_of)?,
        Permitted::OrRules(set) => all("or_rules", set, Condition::any_of)?,
        Permitted::NotRule(inner) => Condition::Not(Box::new(permission(inner).at("not_rule")?)),
        Permitted::Any(any) => anything(*any)?,
        Permitted::Header(header) => Condition::Header(Box::new(matcher::header(header).at("header")?)),
        Permitted::UrlPath(path) => url_path(path)?,
        Permitted::UriTemplate(template) => uri_template(template).at("uri_template")?,
        Permitted::DestinationIp(net) => Condition::DestinationIp(range(net).at("destination_ip")?),
        Permitted::DestinationPort(port) => match u16::try_from(*port) {
            Ok(port) => Condition::DestinationPort(port..=port),
            Err(_) => return Err(Invalid::new("destination_port", format!("{port} is not a port"))),
        },
        Permitted::DestinationPortRange(range) => {
            let within = |port: i32| u16::try_from(port).ok();
            // Half open, so that 65536 is a valid end.
            match (within(range.start), within(range.end.saturating_sub(1))) {
                (Some(first), Some(last)) if first <= last => Condition::DestinationPort(first..=last),
                _ => {
                    let reason = format!("[{}, {}) is no range of ports", range.start, range.end);
                    return Err(Invalid::new("destination_port_range", reason));
                }
            }
        }
        Permitted::RequestedServerName(name) => {
            Condition::ServerName(matcher::string(name).at("requested_server_name")?)
        }
    })
}

fn principal(message: &xds::Principal) -> Result<Condition, Invalid> {
    let all = |field, set: &xds::principal::Set, join| one_of("ids", &set.ids, principal, join).at(field);
    Ok(match required("identifier", message.identifier.as_ref())? {
        Identifier::AndIds(set) => all("and_ids", set, Condition::all_of)?,
        Identifier::OrIds(set) => all("or_ids", set, Condition::any_of)?,
        Identifier::NotId(inner) => Condition::Not(Box::new(principal(inner).at("not_id")?)),
        Identifier::Any(any) => anything(*any)?,
        Identifier::Authenticated(message) => match &message.principal_name {
            None => Condition::Encrypted,
            Some(name) => {
                Condition::Principal(Box::new(name_match(name).at("authenticated.principal_name")?))
            }
        },
        Identifier::Header(header) => Condition::Header(Box::new(matcher::header(header).at("header")?)),
        Identifier::UrlPath(path) => url_path(path)?,
        Identifier::SourceIp(net) => Condition::RemoteIp(range(net).at("source_ip")?),
        Identifier::DirectRemoteIp(net) => Condition::DirectRemoteIp(range(net).at("direct_remote_ip")?),
        Identifier::Metadata(claim) => Condition::Claim(Box::new(jwt::claim(claim).at("metadata")?)),
        Identifier::RemoteIp(net) => Condition::RemoteIp(range(net).at("remote_ip")?),
    })
}

fn anything(any: bool) -> Result<Condition, Invalid> {
    if any { Ok(Condition::Any) } else { Err(Invalid::new("any", "must be true")) }
}

fn url_path(message: &messages::PathMatcher) -> Result<Condition, Invalid> {
    let messages::path_matcher::Rule::Path(path) = required("url_path.rule", message.rule.as_ref())?;
    Ok(Condition::Path(matcher::string(path).at("url_path.path")?))
}

fn uri_template(message: &core::TypedExtensionConfig) -> Result<Condition, Invalid> {
    let config = required("typed_config", message.typed_config.as_ref())?;
    if !config.is::<UriTemplateMatchConfig>() {
        return Err(unsupported_extension(config)).at("typed_config");
    }
    let config: UriTemplateMatchConfig = extension(config)?;
    let template = PathTemplate::parse(&config.path_template);
    let template = template.map_err(|reason| Invalid::new("typed_config.path_template", reason))?;
    Ok(Condition::Template(Box::new(template)))
}

fn name_match(message: &messages::StringMatcher) -> Result<NameMatch, Invalid> {
    use messages::string_matcher::MatchPattern;
    let value = matcher::string(message)?;
    Ok(match &message.match_pattern {
        Some(MatchPattern::SafeRegex(regex)) => {
            plain_meaning(&regex.regex).unwrap_or(NameMatch::Value(value))
        }
        _ => NameMatch::Value(value),
    })
}

/// What a regex for a whole name means, where that can be said without one.
fn plain_meaning(regex: &str) -> Option<NameMatch> {
    if regex == ".+" {
        return Some(NameMatch::NotEmpty);
    }
    if let Some(account) = service_account(regex) {
        return Some(NameMatch::Account(account));
    }
    let parts = regex.split(".*").map(literal).collect::<Option<Vec<String>>>()?;
    if let Some(namespace) = namespace(&parts) {
        return Some(NameMatch::Namespace(namespace));
    }
    Glob::new(&parts).map(NameMatch::Glob)
}

/// Istio's regex for a namespace without stars, by its parts.
fn namespace(parts: &[String]) -> Option<Namespace> {
    let [start, middle, end] = parts else { return None };
    let name = middle.strip_prefix("/ns/").and_then(|rest| rest.strip_suffix('/'))?;
    (start.is_empty() && end.is_empty() && !name.contains('/')).then(|| Namespace::new(name))
}

/// Istio's regex for a service account of a namespace.
fn service_account(regex: &str) -> Option<ServiceAccount> {
    let (namespace, name) = regex.strip_prefix("spiffe://.+/ns/")?.split_once("/(.+/|)sa/")?;
    Some(ServiceAccount::new(&literal(namespace)?, &literal(name.strip_suffix("(/.+)?")?)?))
}

/// The text that a part of a regex stands for, if it is one text.
fn literal(part: &str) -> Option<String> {
    let (mut text, mut chars) = (String::with_capacity(part.len()), part.chars());
    while let Some(c) = chars.next() {
        text.push(match c {
            // A letter or digit after it would be a class.
            '\\' => chars.next().filter(char::is_ascii_punctuation)?,
            '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
            c => c,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::regex;

    #[test]
    fn a_plain_meaning_is_that_of_the_regex() {
        let names = [
            "",
            "spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a.c/sa/b",
            "spiffe://td/ns/axc/sa/b",
            "spiffe://td/ns/a/sa/b/x",
            "xspiffe://td/ns/a/sa/b",
            "spiffe://b",
            "spiffe://",
            "a.*",
            "CN=a",
        ];
        let mut plain = 0;
        for pattern in [
            ".+",
            ".*/ns/a/.*",
            r".*/ns/a\.c/.*",
            "spiffe://.*/sa/b",
            "spiffe://.*",
            ".*/sa/b",
            "spiffe://.*b",
            r"spiffe://.+/ns/a\.c/(.+/|)sa/b(/.+)?",
            "spiffe://.+/ns/a/(.+/|)sa/b(/.+)?",
            r"a\.*",
            r"a\.\*",
            ".*",
            ".*.*",
            "a.*b.*c",
            "spiffe://t[^/]*/.*",
            r".*\d",
            ".*a.c.*",
        ] {
            let whole = regex::full_match(pattern).expect("a regex");
            let Some(meaning) = plain_meaning(pattern) else { continue };
            plain += 1;
            for name in names {
                assert_eq!(meaning.matches(name), whole.is_match(name.as_bytes()), "{pattern} {name}");
            }
        }
        assert_eq!(plain, 12);
    }
}
