//! What was allowed and denied, as Prometheus reads it: Envoy's families per filter, and ours per policy.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::collector::{counter, family, pair};
use crate::authz::counters::{ByPolicy, Counters, Place};

/// All families, of what has been counted.
pub fn families(counters: &Counters) -> Vec<MetricFamily> {
    let mut by_name: BTreeMap<String, (String, Vec<Metric>)> = BTreeMap::new();
    let mut add = |place: &Place, stat: String, value: u64| {
        let mut metric = counter(value);
        if let Some(manager) = place.manager() {
            metric.set_label(vec![pair("envoy_http_conn_manager_prefix", manager)]);
        }
        let new = || (format!("{stat} of /stats."), Vec::new());
        by_name.entry(place.family(&stat)).or_insert_with(new).1.push(metric);
    };
    for (place, allowed, denied) in counters.tallies() {
        place.names().into_iter().zip([allowed, denied]).for_each(|(stat, value)| add(&place, stat, value));
    }
    for (place, word, value) in counters.all_answers() {
        add(&place, place.name(word), value);
    }
    let filters =
        by_name.into_iter().map(|(name, (help, metrics))| family(&name, &help, MetricType::COUNTER, metrics));
    filters.chain(policies(counters)).collect()
}

fn policies(counters: &Counters) -> impl Iterator<Item = MetricFamily> {
    let (mut denied, mut logged) = (Vec::new(), Vec::new());
    for (what, policy, count) in counters.policies() {
        let mut metric = counter(count);
        let mode = match what {
            ByPolicy::Denied => "enforced",
            ByPolicy::ShadowDenied => "dry_run",
            ByPolicy::Logged => {
                metric.set_label(vec![pair("policy", &policy)]);
                logged.push(metric);
                continue;
            }
        };
        metric.set_label(vec![pair("mode", mode), pair("policy", &policy)]);
        denied.push(metric);
    }
    let families = [
        (
            "osier_authorization_audited_total",
            "Requests and connections that an AUDIT policy matched.",
            logged,
        ),
        (
            "osier_authorization_denied_total",
            "Requests and connections that were denied, or would be (mode dry_run), by the policy that decided.",
            denied,
        ),
    ];
    families
        .into_iter()
        .filter(|(_, _, metrics)| !metrics.is_empty())
        .map(|(name, help, metrics)| family(name, help, MetricType::COUNTER, metrics))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn the_page_has_filters_and_policies() {
        let counters = Counters::default();
        assert!(families(&counters).is_empty());
        counters.tally(Place::http("inbound_0.0.0.0_80;", "", false)).count(0, false);
        counters.tally(Place::network("tcp.", "", false)).count(0, true);
        counters.answers(Place::ext_authz("inbound_0.0.0.0_80;", "")).error.fetch_add(4, Relaxed);
        counters.policy(ByPolicy::Denied, "none").fetch_add(1, Relaxed);
        counters.policy(ByPolicy::ShadowDenied, "a").fetch_add(2, Relaxed);
        counters.policy(ByPolicy::Logged, "b").fetch_add(3, Relaxed);
        let page = prometheus::TextEncoder::new().encode_to_string(&families(&counters)).expect("a page");
        for line in [
            "envoy_http_rbac_allowed{envoy_http_conn_manager_prefix=\"inbound_0.0.0.0_80\"} 0",
            "envoy_http_rbac_denied{envoy_http_conn_manager_prefix=\"inbound_0.0.0.0_80\"} 1",
            "envoy_http_ext_authz_error{envoy_http_conn_manager_prefix=\"inbound_0.0.0.0_80\"} 4",
            "envoy_http_ext_authz_ok{envoy_http_conn_manager_prefix=\"inbound_0.0.0.0_80\"} 0",
            "envoy_tcp_rbac_allowed 1",
            "osier_authorization_denied_total{mode=\"enforced\",policy=\"none\"} 1",
            "osier_authorization_denied_total{mode=\"dry_run\",policy=\"a\"} 2",
            "osier_authorization_audited_total{policy=\"b\"} 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
