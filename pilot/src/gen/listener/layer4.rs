//! TCP and TLS chains towards a service, with the `tcp` and `tls` routes of VirtualServices.

use std::collections::HashSet;

use ipnet::IpNet;
use osier_proto::types::core::CidrRange;
use osier_proto::types::listener::{FilterChain, FilterChainMatch};

use super::filter::{self, TcpTimes};
use crate::r#gen::name::OutboundName;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{Destination, L4Match, Service, ServicePort, WeightedL4};
use crate::snapshot::l4_applies;

/// The chains of a service port that take opaque bytes. `ranges` are the addresses that the chain is restricted to.
pub(super) fn tcp(
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    ranges: &[IpNet],
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for rule in scope.snapshot.l4_rules_for(&scope.view().proxy, service) {
        for route in &rule.tcp {
            if route.matches.is_empty() {
                chains.push(chain(scope, &route.destinations, port, prefixes(ranges)));
                return chains;
            }
            for condition in route.matches.iter().filter(|m| l4_applies(m, &scope.view().proxy, port.number))
            {
                let last = condition.destination_subnets.is_empty();
                chains.push(chain(scope, &route.destinations, port, subnets(condition, ranges)));
                if last {
                    return chains;
                }
            }
        }
    }
    chains.push(default(scope, service, port, prefixes(ranges)));
    chains
}

/// The chains of a TLS port: by SNI as the rules say, then to the service. `by_name`: the listener has many services, so that
/// the service's own chain needs its name as well.
pub(super) fn tls(
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    ranges: &[IpNet],
    by_name: bool,
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    let mut claimed = HashSet::new();
    for rule in scope.snapshot.l4_rules_for(&scope.view().proxy, service) {
        for route in &rule.tls {
            for condition in
                route.matches.iter().filter(|m| l4_applies(&m.l4, &scope.view().proxy, port.number))
            {
                let mut names: Vec<String> = condition.sni.iter().map(|h| h.to_string()).collect();
                names.sort();
                if !claimed.insert((names.clone(), condition.l4.destination_subnets.clone())) {
                    continue;
                }
                let prefix_ranges = subnets(&condition.l4, ranges);
                let mut chain = chain(scope, &route.destinations, port, prefix_ranges);
                by_server_name(&mut chain, names);
                chains.push(chain);
            }
        }
    }
    let own_name = vec![service.host().to_string()];
    if !by_name || !claimed.contains(&(own_name.clone(), Vec::new())) {
        let mut own = default(scope, service, port, prefixes(ranges));
        if by_name && own_name != ["*"] {
            by_server_name(&mut own, own_name);
        }
        chains.push(own);
    }
    chains
}

fn by_server_name(chain: &mut FilterChain, names: Vec<String>) {
    let matched = chain.filter_chain_match.get_or_insert_default();
    matched.server_names = names.into_iter().filter(|n| n != "*").collect();
    matched.transport_protocol = "tls".into();
}

fn default(
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    prefix_ranges: Vec<CidrRange>,
) -> FilterChain {
    let destination = Destination { host: service.host().clone(), subset: None, port: Some(port.number) };
    chain(scope, &[WeightedL4 { destination, weight: 1 }], port, prefix_ranges)
}

fn chain(
    scope: &Scope<'_>,
    destinations: &[WeightedL4],
    port: &ServicePort,
    prefix_ranges: Vec<CidrRange>,
) -> FilterChain {
    let clusters: Vec<(String, u32)> =
        destinations.iter().map(|d| (scope.cluster_of(&d.destination, port.number), d.weight)).collect();
    let times = clusters.first().map(|(name, _)| times(scope, name)).unwrap_or_default();
    let mut chain = wire::chain("", filter::tcp(scope, &clusters, times));
    if !prefix_ranges.is_empty() {
        chain.filter_chain_match = Some(FilterChainMatch { prefix_ranges, ..Default::default() });
    }
    chain
}

/// TCP times come from the DestinationRule of the first destination.
fn times(scope: &Scope<'_>, cluster: &str) -> TcpTimes {
    let policy = || {
        let name = OutboundName::parse(cluster)?;
        let service = scope.service(&name.host)?;
        let subset = (!name.subset.is_empty()).then_some(&*name.subset);
        scope.snapshot.effective_policy(&scope.view().proxy, service, name.port, subset).connection_pool
    };
    policy().map_or_else(TcpTimes::default, |pool| TcpTimes {
        idle: pool.tcp.idle_timeout,
        longest: pool.tcp.max_connection_duration,
    })
}

fn subnets(condition: &L4Match, ranges: &[IpNet]) -> Vec<CidrRange> {
    let chosen =
        if condition.destination_subnets.is_empty() { ranges } else { &condition.destination_subnets };
    prefixes(chosen)
}

fn prefixes(ranges: &[IpNet]) -> Vec<CidrRange> {
    ranges.iter().map(|r| wire::range(r.network(), r.prefix_len())).collect()
}
