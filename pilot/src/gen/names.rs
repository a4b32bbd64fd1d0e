//! Name tables (NDS): what a sidecar's DNS server answers for hosts of the mesh.
//!
//! The whole table, under the empty name, is istiod's; its reader adds the short forms of Kubernetes names and looks wildcards up by
//! itself. Clients that ask on demand name one host each, as an application has asked for it, and get its addresses or hear that it
//! has none: short forms, pods of StatefulSets and wildcards are decided here alone. A host without addresses is not in any table, so that
//! the cluster's own DNS answers (that of an ExternalName Service, say).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use osier_proto::types::nds::{NameTable, name_table::NameInfo};

use super::scope::Scope;
use crate::model::{Endpoint, Health, Service, ServiceKind, ServiceSource};

/// Name of the whole table.
const WHOLE: &str = "";

/// The tables that a client with a wildcard gets.
pub fn names(scope: &Scope<'_>) -> Vec<String> {
    if scope.view().is_grpc() { Vec::new() } else { vec![WHOLE.to_owned()] }
}

/// The table of a name.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<NameTable> {
    if name == WHOLE {
        return Some(NameTable { table: whole(scope) });
    }
    let info = one(scope, name)?;
    Some(NameTable { table: [(name.to_owned(), info)].into() })
}

fn whole(scope: &Scope<'_>) -> BTreeMap<String, NameInfo> {
    let mut table = BTreeMap::new();
    for service in scope.services() {
        let host = service.host().as_str();
        table.extend(of_service(scope, service).map(|info| (host.to_owned(), info)));
        let pods: BTreeSet<&str> =
            headless_endpoints(scope, service).map(|e| &*e.hostname).filter(|h| !h.is_empty()).collect();
        for pod in pods {
            table.extend(of_pod(scope, service, pod).map(|info| (format!("{pod}.{host}"), info)));
        }
    }
    table
}

/// What `name`, lower-cased and without its final dot, stands for.
fn one(scope: &Scope<'_>, name: &str) -> Option<NameInfo> {
    let (domain, namespace) = (&scope.snapshot.cluster_domain, &scope.view().proxy.namespace);
    let forms = [
        name.to_owned(),
        format!("{name}.{domain}"),
        format!("{name}.svc.{domain}"),
        format!("{name}.{namespace}.svc.{domain}"),
    ];
    for (at, form) in forms.iter().enumerate() {
        // Only what Kubernetes names has short forms.
        let counts = |service: &&Service| at == 0 || service.source == ServiceSource::Kubernetes;
        if let Some(service) = scope.service(form).map(|s| &**s).filter(counts) {
            return of_service(scope, service);
        }
        let pod = form.split_once('.').and_then(|(pod, host)| Some((pod, &**scope.service(host)?)));
        if let Some((pod, service)) = pod.filter(|(_, service)| service.source == ServiceSource::Kubernetes)
            && let Some(info) = of_pod(scope, service, pod)
        {
            return Some(info);
        }
    }
    let mut rest = name;
    while let Some((_, shorter)) = rest.split_once('.') {
        rest = shorter;
        if let Some(service) = scope.service(&format!("*.{rest}")) {
            return of_service(scope, service);
        }
    }
    None
}

/// Addresses of a host; `None` where it has none.
fn of_service(scope: &Scope<'_>, service: &Service) -> Option<NameInfo> {
    let own = service.addresses_for(&scope.view().proxy);
    let single = own.iter().filter(|range| range.prefix_len() == range.max_prefix_len());
    let addresses: BTreeSet<IpAddr> = match service.kind {
        ServiceKind::ExternalName(_) => return None,
        ServiceKind::Headless => {
            headless_endpoints(scope, service).filter_map(|endpoint| endpoint.address.ip()).collect()
        }
        _ => single.map(|range| range.addr()).collect(),
    };
    info(service, &service.name, addresses)
}

/// Addresses of one pod of a headless service, by its host name.
fn of_pod(scope: &Scope<'_>, service: &Service, pod: &str) -> Option<NameInfo> {
    let own = headless_endpoints(scope, service).filter(|endpoint| *endpoint.hostname == *pod);
    let addresses = own.filter_map(|endpoint| endpoint.address.ip()).collect();
    info(service, &format!("{pod}.{}", service.name), addresses)
}

/// The endpoints that stand for a headless service: those that are ready, or count as such.
fn headless_endpoints<'a>(
    scope: &Scope<'a>,
    service: &'a Service,
) -> impl Iterator<Item = &'a Endpoint> + use<'a> {
    let found = (service.kind == ServiceKind::Headless).then(|| scope.snapshot.endpoints.get(&service.key));
    let ports = found.flatten().into_iter().flat_map(|endpoints| &endpoints.ports);
    ports.flat_map(|port| port.endpoints.iter()).filter(|endpoint| endpoint.health == Health::Healthy)
}

fn info(service: &Service, short: &str, addresses: BTreeSet<IpAddr>) -> Option<NameInfo> {
    if addresses.is_empty() {
        return None;
    }
    let ips = addresses.iter().map(ToString::to_string).collect();
    Some(match service.source {
        ServiceSource::Kubernetes => NameInfo {
            ips,
            registry: "Kubernetes".to_owned(),
            shortname: short.to_owned(),
            namespace: service.key.namespace.to_string(),
            ..NameInfo::default()
        },
        ServiceSource::ServiceEntry => {
            NameInfo { ips, registry: "External".to_owned(), ..NameInfo::default() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#gen::fixture::{Fixture, entry, key};
    use crate::r#gen::key::View;
    use crate::r#gen::key::tests::view;
    use crate::model::{Exports, Protocol, ProxyView};
    use crate::snapshot::MeshSnapshot;

    /// A ClusterIP, a headless service with named pods, a Service that others don't see, and ServiceEntries.
    fn mesh() -> MeshSnapshot {
        let mut fixture = Fixture::default()
            .service("web", Some("10.96.0.1"), &[(80, Protocol::Http)])
            .service("db", None, &[(3306, Protocol::Mysql)])
            .endpoints(
                "db",
                3306,
                &[("10.1.0.1", 3306, "a"), ("10.1.0.2", 3306, "b"), ("10.1.0.3", 3306, "c")],
            )
            .service("empty", None, &[(80, Protocol::Tcp)])
            .service("alias", Some("10.96.0.9"), &[(80, Protocol::Tcp)])
            .service("hidden", Some("10.96.0.3"), &[(80, Protocol::Tcp)]);
        let endpoints = &mut fixture.endpoints[0].2;
        for (at, endpoint) in endpoints.iter_mut().enumerate() {
            endpoint.hostname = format!("db-{at}").into();
        }
        endpoints[2].health = Health::Unhealthy;
        for service in &mut fixture.services {
            if &*service.name == "hidden" {
                service.export_to = crate::model::ExportTo(["elsewhere".into()].into());
            }
            if &*service.name == "alias" {
                service.kind = ServiceKind::ExternalName(key("web", "default").host);
                service.addresses.clear();
            }
        }
        let entries = [
            entry(
                "api.example.com",
                ServiceKind::Dns,
                &["192.0.2.1", "2001:db8::1"],
                &[(443, Protocol::Tls)],
            ),
            entry("*.wild.example.com", ServiceKind::Static, &["192.0.2.2"], &[(443, Protocol::Tls)]),
            entry("*.bare.example.com", ServiceKind::Static, &[], &[(443, Protocol::Tls)]),
            entry("range.example.com", ServiceKind::Static, &["192.0.2.0/24"], &[(443, Protocol::Tls)]),
            entry("auto.example.com", ServiceKind::Dns, &[], &[(5432, Protocol::Tcp)]),
        ];
        fixture.services.extend(entries);
        fixture.build()
    }

    fn client() -> View {
        let mut client = view("default", []);
        client.proxy = ProxyView { dns_capture: true, ..client.proxy };
        client
    }

    fn ips(found: Option<NameInfo>) -> Option<String> {
        found.map(|info| info.ips.join(" "))
    }

    #[test]
    fn one_name_at_a_time() {
        let (snapshot, client) = (mesh(), client());
        let scope = Scope::new(&snapshot, &client);
        let automatic = snapshot.service("default", "auto.example.com").unwrap().automatic[0].to_string();
        for (name, wanted) in [
            ("web.default.svc.cluster.local", Some("10.96.0.1")),
            ("web.default.svc", Some("10.96.0.1")),
            ("web.default", Some("10.96.0.1")),
            ("web", Some("10.96.0.1")),
            ("db.default.svc.cluster.local", Some("10.1.0.1 10.1.0.2")),
            ("db-1.db.default.svc.cluster.local", Some("10.1.0.2")),
            ("db-1.db", Some("10.1.0.2")),
            ("db-2.db.default.svc.cluster.local", None),
            ("db-7.db.default.svc.cluster.local", None),
            ("empty.default.svc.cluster.local", None),
            ("alias.default.svc.cluster.local", None),
            ("hidden.default.svc.cluster.local", None),
            ("web.elsewhere.svc.cluster.local", None),
            ("api.example.com", Some("192.0.2.1 2001:db8::1")),
            ("api", None),
            ("a.wild.example.com", Some("192.0.2.2")),
            ("a.b.wild.example.com", Some("192.0.2.2")),
            ("wild.example.com", None),
            ("a.bare.example.com", None),
            ("range.example.com", None),
            ("auto.example.com", Some(automatic.as_str())),
            ("nobody.example.com", None),
            ("api.example.com.default.svc.cluster.local", None),
        ] {
            assert_eq!(ips(one(&scope, name)).as_deref(), wanted, "{name}");
        }
        let uncaptured = view("default", []);
        let scope = Scope::new(&snapshot, &uncaptured);
        assert_eq!(
            ips(one(&scope, "auto.example.com")),
            None,
            "only who asks us for names meets automatic addresses"
        );
    }

    #[test]
    fn the_whole_table_holds_what_can_be_asked_for_by_its_full_name() {
        let (snapshot, client) = (mesh(), client());
        let scope = Scope::new(&snapshot, &client);
        let table = generate(&scope, WHOLE).unwrap().table;
        assert_eq!(
            table.keys().collect::<Vec<_>>(),
            [
                "*.wild.example.com",
                "api.example.com",
                "auto.example.com",
                "db-0.db.default.svc.cluster.local",
                "db-1.db.default.svc.cluster.local",
                "db.default.svc.cluster.local",
                "web.default.svc.cluster.local",
            ]
        );
        for (name, info) in &table {
            assert_eq!(one(&scope, name).as_ref(), Some(info), "{name}");
        }
        let pod = &table["db-0.db.default.svc.cluster.local"];
        assert_eq!((&*pod.registry, &*pod.shortname, &*pod.namespace), ("Kubernetes", "db-0.db", "default"));
        assert_eq!(snapshot.service("default", "hidden.default.svc.cluster.local"), None);
        assert_eq!(
            Exports::Public,
            snapshot.service("default", "web.default.svc.cluster.local").unwrap().exports
        );
    }

    #[test]
    fn kubernetes_wins_over_an_entry_of_the_same_host() {
        let mut fixture = Fixture::default().service("web", Some("10.96.0.1"), &[(80, Protocol::Http)]);
        fixture.services.push(entry(
            "web.default.svc.cluster.local",
            ServiceKind::Static,
            &["192.0.2.9"],
            &[(80, Protocol::Http)],
        ));
        let (snapshot, client) = (fixture.build(), client());
        assert_eq!(ips(one(&Scope::new(&snapshot, &client), "web")).as_deref(), Some("10.96.0.1"));
    }
}
