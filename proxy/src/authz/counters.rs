//! What was allowed and denied, by filter and by policy.
//!
//! A filter's counts are found when it is compiled and outlive it, so that a change of a policy takes nothing back. Workers count
//! apart, on cache lines of their own. What is denied is counted by policy as well, in one place for all workers: it is the
//! exception.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::ext_authz::Answers;

/// Cache lines of a tally; more workers than that share some.
const LINES: usize = 8;

/// What one kind of decision came to.
#[derive(Debug, Default)]
pub struct Tally([Line; LINES]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl Tally {
    /// Counts one decision of a worker.
    pub fn count(&self, worker: usize, allowed: bool) {
        let line = &self.0[worker % LINES];
        let counter = if allowed { &line.allowed } else { &line.denied };
        counter.fetch_add(1, Relaxed);
    }

    /// Allowed and denied so far.
    pub fn sums(&self) -> (u64, u64) {
        let sum = |of: fn(&Line) -> &AtomicU64| self.0.iter().map(|line| of(line).load(Relaxed)).sum();
        (sum(|line| &line.allowed), sum(|line| &line.denied))
    }
}

/// Where a filter counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `stat_prefix` of the HTTP connection manager; `None` for a network filter.
    pub http: Option<Arc<str>>,
    /// Prefix of the names, up to and with `rbac.`, e.g. `tcp.rbac.` or `http.inbound_0.0.0.0_8080;.rbac.istio_dry_run_deny_.`.
    pub prefix: Arc<str>,
    /// Shadow rules.
    pub shadow: bool,
}

impl Place {
    /// Of an HTTP filter, under the prefix of its connection manager and its own.
    pub fn http(manager: &str, own: &str, shadow: bool) -> Self {
        let prefix = format!("http.{manager}.rbac.{}", joined(own));
        Self { http: Some(manager.into()), prefix: prefix.into(), shadow }
    }

    /// Of the filter that verifies tokens, under the prefix of its connection manager.
    pub fn jwt(manager: &str) -> Self {
        Self {
            http: Some(manager.into()),
            prefix: format!("http.{manager}.jwt_authn.").into(),
            shadow: false,
        }
    }

    /// Of a network filter.
    pub fn network(stat_prefix: &str, own: &str, shadow: bool) -> Self {
        let prefix = format!("{}rbac.{}", joined(stat_prefix), joined(own));
        Self { http: None, prefix: prefix.into(), shadow }
    }

    /// Of the filter that asks an external authorizer, under the prefix of its connection manager and its own.
    pub fn ext_authz(manager: &str, own: &str) -> Self {
        let prefix = format!("http.{manager}.ext_authz.{}", joined(own));
        Self { http: Some(manager.into()), prefix: prefix.into(), shadow: false }
    }

    /// The same of a network filter.
    pub fn network_ext_authz(own: &str) -> Self {
        Self { http: None, prefix: format!("ext_authz.{}", joined(own)).into(), shadow: false }
    }

    /// Names of the two counts.
    pub fn names(&self) -> [String; 2] {
        let shadow = if self.shadow { "shadow_" } else { "" };
        ["allowed", "denied"].map(|word| self.name(&format!("{shadow}{word}")))
    }

    /// Name of a count that is called so.
    pub fn name(&self, word: &str) -> String {
        format!("{}{word}", self.prefix)
    }

    /// The same as Prometheus gets it, without the connection manager, which is a label there.
    pub fn family(&self, name: &str) -> String {
        let manager = self.http.as_ref().map(|manager| format!("http.{manager}."));
        let name = match manager.as_ref().and_then(|manager| name.strip_prefix(manager.as_str())) {
            Some(rest) => format!("http.{rest}"),
            None => name.to_owned(),
        };
        format!("envoy_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }

    /// The label that names the connection manager, as Envoy shows it: Istio's prefixes end in a semicolon, which ends the tag.
    pub fn manager(&self) -> Option<&str> {
        self.http.as_deref().map(|manager| manager.strip_suffix(';').unwrap_or(manager))
    }
}

/// A part of a name with the dot after it; an empty one has none.
fn joined(part: &str) -> String {
    match part {
        "" => String::new(),
        part if part.ends_with('.') => part.to_owned(),
        part => format!("{part}."),
    }
}

/// A count that several filters share.
pub type Count = Arc<AtomicU64>;

/// What was counted by policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ByPolicy {
    /// It denied.
    Denied,
    /// It would have.
    ShadowDenied,
    /// It was to be logged.
    Logged,
}

/// All counts of the process. Names come from configuration, so there are as many as policies and listeners.
#[derive(Debug, Default)]
pub struct Counters {
    tallies: Mutex<BTreeMap<Place, Arc<Tally>>>,
    answers: Mutex<BTreeMap<Place, Arc<Answers>>>,
    policies: Mutex<BTreeMap<(ByPolicy, Arc<str>), Count>>,
}

impl Counters {
    /// The counts of a filter.
    pub fn tally(&self, place: Place) -> Arc<Tally> {
        self.tallies.lock().entry(place).or_default().clone()
    }

    /// What came of asking an external authorizer.
    pub fn answers(&self, place: Place) -> Arc<Answers> {
        self.answers.lock().entry(place).or_default().clone()
    }

    /// All counts of answers: place, Envoy's word, how many.
    pub fn all_answers(&self) -> Vec<(Place, &'static str, u64)> {
        let answers = self.answers.lock();
        let of = |(place, answers): (&Place, &Arc<Answers>)| {
            answers.counts().map(|(word, count)| (place.clone(), word, count))
        };
        answers.iter().flat_map(of).collect()
    }

    /// The count of a policy.
    pub fn policy(&self, what: ByPolicy, name: &str) -> Count {
        self.policies.lock().entry((what, name.into())).or_default().clone()
    }

    /// All counts of filters: place, allowed, denied.
    pub fn tallies(&self) -> Vec<(Place, u64, u64)> {
        let tallies = self.tallies.lock();
        let sums = |(place, tally): (&Place, &Arc<Tally>)| {
            let (allowed, denied) = tally.sums();
            (place.clone(), allowed, denied)
        };
        tallies.iter().map(sums).collect()
    }

    /// All counts of policies that are not zero.
    pub fn policies(&self) -> Vec<(ByPolicy, Arc<str>, u64)> {
        let mut policies = self.policies.lock();
        // Policies that went without having done anything leave nothing behind.
        policies.retain(|_, count| Arc::strong_count(count) > 1 || count.load(Relaxed) > 0);
        let counts = policies.iter().map(|((what, name), count)| (*what, name.clone(), count.load(Relaxed)));
        counts.filter(|(_, _, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_envoys() {
        for (place, name, family, manager) in [
            (
                Place::http("inbound_0.0.0.0_80;", "", false),
                "http.inbound_0.0.0.0_80;.rbac.denied",
                "envoy_http_rbac_denied",
                Some("inbound_0.0.0.0_80"),
            ),
            (
                Place::http("x", "istio_dry_run_deny_", true),
                "http.x.rbac.istio_dry_run_deny_.shadow_denied",
                "envoy_http_rbac_istio_dry_run_deny__shadow_denied",
                Some("x"),
            ),
            (Place::jwt("x"), "http.x.jwt_authn.denied", "envoy_http_jwt_authn_denied", Some("x")),
            (Place::ext_authz("x", ""), "http.x.ext_authz.denied", "envoy_http_ext_authz_denied", Some("x")),
            (Place::network_ext_authz("tcp."), "ext_authz.tcp.denied", "envoy_ext_authz_tcp_denied", None),
            (Place::network("tcp.", "", false), "tcp.rbac.denied", "envoy_tcp_rbac_denied", None),
            (
                Place::network("tcp", "istio_dry_run_allow_", true),
                "tcp.rbac.istio_dry_run_allow_.shadow_denied",
                "envoy_tcp_rbac_istio_dry_run_allow__shadow_denied",
                None,
            ),
        ] {
            assert_eq!(place.names()[1], name);
            assert_eq!(place.family(&place.names()[1]), family);
            assert_eq!(place.manager(), manager);
        }
    }

    #[test]
    fn one_place_has_one_tally_and_workers_add_up() {
        let counters = Counters::default();
        let place = || Place::network("tcp.", "", false);
        let (first, second) = (counters.tally(place()), counters.tally(place()));
        first.count(0, true);
        second.count(1, true);
        second.count(9, false);
        assert_eq!(counters.tallies(), [(place(), 2, 1)]);
        assert!(counters.policies().is_empty());
        counters.policy(ByPolicy::Denied, "a").fetch_add(2, Relaxed);
        counters.policy(ByPolicy::Logged, "a");
        assert_eq!(counters.policies(), [(ByPolicy::Denied, "a".into(), 2)]);
    }
}
