//! Policies as matchers, and what they say of the [`Facts`].

use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::filter::Denial;
use super::{Facts, Glob, Namespace, PathTemplate, ServiceAccount, Workload};
use crate::config::route::{HeaderMatch, ValueMatch};
use crate::http::router::{header_holds, values_hold};
use crate::jwt::ClaimCondition;

/// What a set of rules does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// What no rule matches is denied.
    Allow,
    /// What a rule matches is denied.
    Deny,
    /// Nothing is denied; what a rule matches is counted.
    Log,
}

/// Rules of one action, in the order of their names.
#[derive(Debug)]
pub struct Rules {
    /// What they do.
    pub action: Action,
    /// The first that matches has its name told.
    pub rules: Box<[Rule]>,
    /// What is said where [`Action::Allow`] finds no rule.
    pub unmatched: Denial,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Who asks, and what for.
    pub condition: Condition,
    /// What is said where the rule denies, and counted where it denies or logs.
    pub denial: Denial,
}

/// A condition. Permissions and principals have the same kinds, because nothing forbids one to look at the other's facts.
#[derive(Debug)]
pub enum Condition {
    /// Always.
    Any,
    /// The other way round.
    Not(Box<Condition>),
    /// All hold.
    AllOf(Box<[Condition]>),
    /// One holds.
    AnyOf(Box<[Condition]>),
    /// A header or pseudo header; false for what has none.
    Header(Box<HeaderMatch>),
    /// The path without query.
    Path(ValueMatch),
    /// The same, by its segments.
    Template(Box<PathTemplate>),
    /// Where the connection was going.
    DestinationIp(IpNet),
    /// The port there.
    DestinationPort(RangeInclusive<u16>),
    /// SNI; the empty string without.
    ServerName(ValueMatch),
    /// One of the client's proved names.
    Principal(Box<NameMatch>),
    /// The connection is TLS, whoever the client is.
    Encrypted,
    /// The other end of the connection.
    DirectRemoteIp(IpNet),
    /// The client, as `x-forwarded-for` says where that is trusted.
    RemoteIp(IpNet),
    /// A claim of a verified token.
    Claim(Box<ClaimCondition>),
}

// A request may walk through hundreds of them: the large ones lie elsewhere.
const _: () = assert!(size_of::<Condition>() <= 48);

/// Condition on a proved name. The forms that Istio's policies become are told apart, because a regex costs ten times as much.
#[derive(Debug)]
pub enum NameMatch {
    /// Any of the kinds that a text can be compared by.
    Value(ValueMatch),
    /// Any name that isn't empty.
    NotEmpty,
    /// Texts in this order, whatever lies between them.
    Glob(Glob),
    /// A workload's namespace.
    Namespace(Namespace),
    /// A workload's account in a namespace.
    Account(ServiceAccount),
}

impl Rules {
    /// The first rule that matches.
    pub fn matched(&self, facts: &Facts<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.condition.holds(facts))
    }

    /// True where a rule looks at tokens.
    pub fn looks_at_tokens(&self) -> bool {
        self.rules.iter().any(|rule| rule.condition.looks_at_tokens())
    }

    /// The denial, if these rules deny.
    pub fn deny(&self, facts: &Facts<'_>) -> Option<&Denial> {
        match (self.action, self.matched(facts)) {
            (Action::Allow, None) => Some(&self.unmatched),
            (Action::Deny, Some(rule)) => Some(&rule.denial),
            (Action::Log, Some(rule)) => {
                rule.denial.note();
                None
            }
            (Action::Allow, Some(_)) | (Action::Deny | Action::Log, None) => None,
        }
    }
}

impl Condition {
    /// True where the facts are so.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Not(inner) => !inner.holds(facts),
            Self::AllOf(all) => all.iter().all(|condition| condition.holds(facts)),
            Self::AnyOf(any) => any.iter().any(|condition| condition.holds(facts)),
            Self::Header(header) => match facts.request {
                Some(request) => header_holds(header, request.head),
                None => values_hold(header, std::iter::empty()),
            },
            Self::Path(value) => facts.request.is_some_and(|request| value.holds(request.path)),
            Self::Template(template) => facts.request.is_some_and(|request| template.matches(request.path)),
            Self::DestinationIp(net) => net.contains(&facts.destination.ip()),
            Self::DestinationPort(ports) => ports.contains(&facts.destination.port()),
            Self::ServerName(value) => value.holds(facts.server_name.as_bytes()),
            Self::Principal(name) => match &facts.workload {
                Some((workload, principal)) => name.holds(workload, principal),
                None => facts.principals.iter().any(|principal| name.matches(principal)),
            },
            Self::Encrypted => facts.encrypted,
            Self::DirectRemoteIp(net) => net.contains(&facts.direct_remote),
            Self::RemoteIp(net) => net.contains(&facts.remote),
            Self::Claim(claim) => claim.holds(facts.tokens),
        }
    }

    fn looks_at_tokens(&self) -> bool {
        match self {
            Self::Claim(_) => true,
            Self::Not(inner) => inner.looks_at_tokens(),
            Self::AllOf(several) | Self::AnyOf(several) => several.iter().any(Self::looks_at_tokens),
            _ => false,
        }
    }

    /// Of these, all; the cheap ones first. Conditions have no effects, so their order changes nothing else.
    pub fn all_of(conditions: Vec<Condition>) -> Self {
        let mut flat = Vec::with_capacity(conditions.len());
        for condition in conditions {
            match condition {
                Self::AllOf(inner) => flat.extend(inner),
                Self::Any => {}
                other => flat.push(other),
            }
        }
        flat.sort_by_key(Self::cost);
        match flat.len() {
            0 => Self::Any,
            1 => flat.remove(0),
            _ => Self::AllOf(flat.into()),
        }
    }

    /// Of these, one; the cheap ones first.
    pub fn any_of(mut conditions: Vec<Condition>) -> Self {
        conditions.sort_by_key(Self::cost);
        match conditions.len() {
            1 => conditions.remove(0),
            _ => Self::AnyOf(conditions.into()),
        }
    }

    /// About how much it costs to ask, in some unit.
    fn cost(&self) -> u32 {
        let of_value = |value: &ValueMatch| if matches!(value, ValueMatch::Regex(_)) { 40 } else { 2 };
        match self {
            Self::Any | Self::Encrypted | Self::DestinationPort(_) => 0,
            Self::DestinationIp(_) | Self::DirectRemoteIp(_) | Self::RemoteIp(_) => 1,
            Self::Path(value) | Self::ServerName(value) => of_value(value),
            Self::Principal(name) => match &**name {
                NameMatch::Value(value) => of_value(value),
                NameMatch::Glob(_) => 4,
                NameMatch::NotEmpty | NameMatch::Namespace(_) | NameMatch::Account(_) => 1,
            },
            Self::Template(_) => 6,
            Self::Header(header) => 5 + of_value(&header.value),
            Self::Claim(_) => 8,
            Self::Not(inner) => inner.cost(),
            Self::AllOf(several) | Self::AnyOf(several) => several.iter().map(Self::cost).sum(),
        }
    }
}

impl NameMatch {
    /// True for a name that is so.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Value(value) => value.holds(name.as_bytes()),
            Self::NotEmpty => !name.is_empty(),
            Self::Glob(glob) => glob.matches(name),
            Self::Namespace(namespace) => namespace.matches(name),
            Self::Account(account) => account.matches(name),
        }
    }

    /// The same for a name that was taken apart.
    fn holds(&self, workload: &Workload<'_>, name: &str) -> bool {
        match self {
            Self::Namespace(namespace) => namespace.holds(workload),
            Self::Account(account) => account.holds(workload),
            Self::Value(_) | Self::NotEmpty | Self::Glob(_) => self.matches(name),
        }
    }
}
