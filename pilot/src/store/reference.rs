//! What rules point at, and what of it is nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use osier_core::host::Host;

use crate::model::{
    Demand, Destination, DestinationPolicy, FetchedKeys, HttpAction, KeyLocation, KeySource, ResourceKey,
    RouteRule, SecurityPolicy,
};
use crate::snapshot::{KeyIndex, MeshSnapshot, NoAuthorizer, covers, token_rules};

/// A reference to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The rule.
    pub key: ResourceKey,
    /// Path of the reference.
    pub field: String,
    /// What is missing.
    pub message: String,
}

/// Which subsets are defined, whoever sees the rule.
pub(super) struct Subsets<'a> {
    exact: HashMap<&'a Host, HashSet<&'a str>>,
    wildcard: Vec<&'a DestinationPolicy>,
}

impl<'a> Subsets<'a> {
    pub(super) fn new(policies: impl Iterator<Item = &'a Arc<DestinationPolicy>>) -> Self {
        let mut subsets = Self { exact: HashMap::new(), wildcard: Vec::new() };
        for policy in policies {
            if policy.host.is_wildcard() {
                subsets.wildcard.push(policy);
            } else {
                let names = policy.subsets.iter().map(|s| &*s.name);
                subsets.exact.entry(&policy.host).or_default().extend(names);
            }
        }
        subsets
    }

    pub(super) fn defined(&self, host: &Host, subset: &str) -> bool {
        self.exact.get(host).is_some_and(|names| names.contains(subset))
            || self.wildcard.iter().any(|p| p.host.covers(host) && p.subset(subset).is_some())
    }
}

/// Every destination of a rule with its path. Entries of weight 0 are gone, so their paths may be off by those.
fn destinations(rule: &RouteRule) -> Vec<(String, &Destination)> {
    let mut found = Vec::new();
    for (at, route) in rule.http.iter().enumerate() {
        if let HttpAction::Forward(to) = &route.action {
            found.extend(to.iter().map(|d| (format!("spec.http[{at}].route"), &d.destination)));
        }
    }
    for (at, route) in rule.tls.iter().enumerate() {
        found.extend(route.destinations.iter().map(|d| (format!("spec.tls[{at}].route"), &d.destination)));
    }
    for (at, route) in rule.tcp.iter().enumerate() {
        found.extend(route.destinations.iter().map(|d| (format!("spec.tcp[{at}].route"), &d.destination)));
    }
    found
}

/// Hosts and subsets that a rule forwards to.
pub(super) fn subsets_of(rule: &RouteRule) -> impl Iterator<Item = (&Host, &str)> {
    destinations(rule).into_iter().filter_map(|(_, d)| Some((&d.host, d.subset.as_deref()?)))
}

/// Hosts that a rule forwards to.
pub(super) fn hosts_of(rule: &RouteRule) -> impl Iterator<Item = &Host> {
    destinations(rule).into_iter().map(|(_, d)| &d.host)
}

/// References to hosts and subsets that are nowhere.
pub(super) fn findings<'a>(
    snapshot: &MeshSnapshot,
    subsets: &Subsets<'_>,
    rules: impl Iterator<Item = &'a Arc<RouteRule>>,
) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for rule in rules {
        for (field, destination) in destinations(rule) {
            let Some(message) = missing(snapshot, subsets, rule, destination) else { continue };
            let finding = Finding { key: rule.key.clone(), field, message };
            if found.last() != Some(&finding) {
                found.push(finding);
            }
        }
    }
    found
}

/// Backends of Ingresses that are nowhere.
pub(super) fn of_ingresses(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for ingress in snapshot.ingresses.iter() {
        let default =
            ingress.default_backend.iter().map(|backend| ("spec.defaultBackend".to_owned(), backend));
        let of_rules = ingress.rules.iter().enumerate().flat_map(|(rule, r)| {
            let field = move |path| format!("spec.rules[{rule}].http.paths[{path}].backend");
            r.paths.iter().enumerate().map(move |(at, path)| (field(at), &path.backend))
        });
        for (field, backend) in default.chain(of_rules) {
            let missing = snapshot.ingress_backend(&ingress.key.namespace, backend).err();
            found.extend(missing.map(|nothing| Finding {
                key: ingress.key.clone(),
                field,
                message: format!("{nothing}; requests to it get 503"),
            }));
        }
    }
    found
}

/// AuthorizationPolicies that name an authorizer which nobody can ask. Whether a service is seen is asked for the policy's namespace;
/// where policies with several authorizers meet, for the workloads that are known.
pub(super) fn of_authorizers<'a>(
    snapshot: &MeshSnapshot,
    policies: impl Iterator<Item = &'a Arc<SecurityPolicy>>,
) -> Vec<Finding> {
    let custom: Vec<(&SecurityPolicy, &Arc<str>)> = policies
        .filter_map(|policy| match &policy.demands {
            Demand::Authorization(authorization) => Some((&**policy, authorization.provider.as_ref()?)),
            _ => None,
        })
        .collect();
    let crowded = crowded(snapshot, &custom);
    let problem = |(policy, provider): &(&SecurityPolicy, &Arc<str>)| {
        let own = [(*provider).clone()].into();
        let alone = snapshot.authorizer(&policy.key.namespace, &own).err();
        let nobody = alone.or_else(|| crowded.get(&policy.key).cloned())?;
        Some(Finding {
            key: policy.key.clone(),
            field: "spec.provider.name".into(),
            message: format!("{nobody}; what its rules match is denied"),
        })
    };
    custom.iter().filter_map(problem).collect()
}

/// Policies that share a workload with one that names another authorizer.
fn crowded(
    snapshot: &MeshSnapshot,
    custom: &[(&SecurityPolicy, &Arc<str>)],
) -> BTreeMap<ResourceKey, NoAuthorizer> {
    let mut found = BTreeMap::new();
    if custom.iter().all(|(_, provider)| *provider == custom[0].1) {
        return found;
    }
    let root = &snapshot.mesh.root_namespace;
    for workload in snapshot.workloads.iter() {
        let here: Vec<_> = custom
            .iter()
            .filter(|(policy, _)| covers(policy, root, workload.namespace(), &workload.labels))
            .collect();
        let providers: BTreeSet<Arc<str>> = here.iter().map(|(_, provider)| (*provider).clone()).collect();
        if providers.len() > 1 {
            let several = |(policy, _): &&(&SecurityPolicy, &Arc<str>)| {
                (policy.key.clone(), NoAuthorizer::Several(providers.clone()))
            };
            found.extend(here.iter().map(several));
        }
    }
    found
}

/// Key sets that couldn't be fetched.
pub(super) fn of_key_sets<'a>(
    policies: impl Iterator<Item = &'a Arc<SecurityPolicy>>,
    keys: &KeyIndex,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for policy in policies {
        for (index, rule) in token_rules(policy) {
            let KeySource::Remote(location, _) = &rule.keys else { continue };
            let Some(FetchedKeys { keys, failure: Some(failure) }) = keys.get(location) else { continue };
            let field = match location {
                KeyLocation::Uri(_) => "jwksUri",
                KeyLocation::Issuer(_) => "issuer",
            };
            let issuer = &rule.issuer;
            let consequence = match keys {
                Some(_) => "the keys that were fetched before stay in force".to_owned(),
                None => format!("every token of issuer {issuer:?} is refused"),
            };
            found.push(Finding {
                key: policy.key.clone(),
                field: format!("spec.jwtRules[{index}].{field}"),
                message: format!("no keys of issuer {issuer:?} from {location}: {failure}; {consequence}"),
            });
        }
    }
    found
}

fn missing(
    snapshot: &MeshSnapshot,
    subsets: &Subsets<'_>,
    rule: &RouteRule,
    destination: &Destination,
) -> Option<String> {
    let Destination { host, subset, port } = destination;
    let resolved = snapshot.resolve_alias(&rule.key.namespace, host.as_str()).unwrap_or_else(|| host.clone());
    let service = snapshot.service(&rule.key.namespace, resolved.as_str());
    let Some(service) = service else {
        return Some(format!(
            "the host {host} is no service that {} sees; requests to it get 503",
            rule.key.namespace
        ));
    };
    if let Some(number) = port
        && service.port(*number).is_none()
    {
        return Some(format!("the service {host} has no port {number}; requests to it get 503"));
    }
    let subset = subset.as_ref()?;
    (!subsets.defined(&resolved, subset))
        .then(|| format!("no DestinationRule defines the subset {subset} of {host}; requests to it get 503"))
}
