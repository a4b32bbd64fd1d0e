//! Policies as matchers, and what they say of the [`Facts`].

use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::filter::Denial;
use super::{Facts, Glob, PathTemplate, ServiceAccount};
use crate::config::route::{HeaderMatch, ValueMatch};
use crate::http::router::{header_holds, values_hold};

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

/// One rule: a permission and a principal, both of which must hold.
#[derive(Debug)]
pub struct Rule {
    /// What is asked for.
    pub permission: Condition,
    /// Who asks.
    pub principal: Condition,
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
    Header(HeaderMatch),
    /// The path without query.
    Path(ValueMatch),
    /// The same, by its segments.
    Template(PathTemplate),
    /// Where the connection was going.
    DestinationIp(IpNet),
    /// The port there.
    DestinationPort(RangeInclusive<u16>),
    /// SNI; the empty string without.
    ServerName(ValueMatch),
    /// One of the client's proved names.
    Principal(NameMatch),
    /// The connection is TLS, whoever the client is.
    Encrypted,
    /// The other end of the connection.
    DirectRemoteIp(IpNet),
    /// The client, as `x-forwarded-for` says where that is trusted.
    RemoteIp(IpNet),
}

/// Condition on a proved name. The forms that Istio's policies become are told apart, because a regex costs ten times as much.
#[derive(Debug)]
pub enum NameMatch {
    /// Any of the kinds that a text can be compared by.
    Value(ValueMatch),
    /// Any name that isn't empty.
    NotEmpty,
    /// Texts in this order, whatever lies between them.
    Glob(Glob),
    /// A workload's account in a namespace.
    Account(ServiceAccount),
}

impl Rules {
    /// The denial, if these rules deny.
    pub fn deny(&self, facts: &Facts<'_>) -> Option<&Denial> {
        let matched = self.rules.iter().find(|rule| rule.holds(facts));
        match (self.action, matched) {
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

impl Rule {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        self.permission.holds(facts) && self.principal.holds(facts)
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
            Self::Header(header) => match facts.head {
                Some(head) => header_holds(header, head),
                None => values_hold(header, std::iter::empty()),
            },
            Self::Path(value) => facts.head.is_some_and(|head| value.holds(head.path_only())),
            Self::Template(template) => facts.head.is_some_and(|head| template.matches(head.path_only())),
            Self::DestinationIp(net) => net.contains(&facts.destination.ip()),
            Self::DestinationPort(ports) => ports.contains(&facts.destination.port()),
            Self::ServerName(value) => value.holds(facts.server_name.as_bytes()),
            Self::Principal(name) => facts.principals.iter().any(|principal| name.matches(principal)),
            Self::Encrypted => facts.encrypted,
            Self::DirectRemoteIp(net) => net.contains(&facts.direct_remote),
            Self::RemoteIp(net) => net.contains(&facts.remote),
        }
    }

    /// Of these, all; the cheap ones first. Conditions have no effects, so their order changes nothing else.
    pub fn all_of(mut conditions: Vec<Condition>) -> Self {
        conditions.sort_by_key(Self::cost);
        match <[Condition; 1]>::try_from(conditions) {
            Ok([only]) => only,
            Err(several) => Self::AllOf(several.into()),
        }
    }

    /// Of these, one; the cheap ones first.
    pub fn any_of(mut conditions: Vec<Condition>) -> Self {
        conditions.sort_by_key(Self::cost);
        match <[Condition; 1]>::try_from(conditions) {
            Ok([only]) => only,
            Err(several) => Self::AnyOf(several.into()),
        }
    }

    /// About how much it costs to ask, in some unit.
    fn cost(&self) -> u32 {
        let of_value = |value: &ValueMatch| if matches!(value, ValueMatch::Regex(_)) { 40 } else { 2 };
        match self {
            Self::Any | Self::Encrypted | Self::DestinationPort(_) => 0,
            Self::DestinationIp(_) | Self::DirectRemoteIp(_) | Self::RemoteIp(_) => 1,
            Self::Path(value) | Self::ServerName(value) => of_value(value),
            Self::Principal(NameMatch::Value(value)) => of_value(value),
            Self::Principal(NameMatch::NotEmpty) => 1,
            Self::Principal(NameMatch::Glob(_)) => 4,
            Self::Principal(NameMatch::Account(_)) | Self::Template(_) => 6,
            Self::Header(header) => 5 + of_value(&header.value),
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
            Self::Account(account) => account.matches(name),
        }
    }
}
