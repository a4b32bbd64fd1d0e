//! Tables over whole meshes: which resources a client has, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use osier_proto::types::cluster::{Cluster, cluster::ClusterDiscoveryType, cluster::DiscoveryType};
use osier_proto::types::endpoint::ClusterLoadAssignment;
use osier_proto::types::listener::{Listener, filter_chain_match::ConnectionSourceType};
use osier_proto::types::route::{RouteConfiguration, VirtualHost};
use proptest::prelude::*;

use super::fixture::{Fixture, endpoint, entry, key, kubernetes, route, rule, split};
use super::key::tests::view;
use super::key::{Key, ResourceType, SecretsOf, View, Views};
use super::{Generated, generate, names};
use crate::r#gen::route::Plan;
use crate::r#gen::scope::Scope;
use crate::model::{
    DirectResponse, HttpAction, HttpMatch, Interception, OutboundTraffic, Protocol, ProxyKind, Redirect,
    RedirectPath, ServiceKind, StringMatch,
};
use crate::snapshot::MeshSnapshot;
use osier_core::host::Host;

/// HTTP, TCP, automatic and headless services, with a split.
fn mesh() -> Fixture {
    Fixture::default()
        .service("reviews", Some("10.96.0.1"), &[(80, Protocol::Http)])
        .endpoints("reviews", 80, &[("10.1.0.1", 8080, "v1"), ("10.1.0.2", 8080, "v2")])
        .subsets("reviews", &["v1", "v2"])
        .rule("reviews", vec![split("reviews", &[("v1", 90), ("v2", 10)])])
        .service("redis", Some("10.96.0.2"), &[(6379, Protocol::Tcp)])
        .endpoints("redis", 6379, &[("10.1.0.3", 6379, "v1")])
        .service("auto", Some("10.96.0.3"), &[(9000, Protocol::Auto)])
        .endpoints("auto", 9000, &[("10.1.0.4", 9000, "v1")])
        .service("db", None, &[(3306, Protocol::Mysql)])
        .endpoints("db", 3306, &[("10.1.0.5", 3306, "v1"), ("10.9.0.1", 3306, "v1")])
        .service("web", Some("10.96.0.4"), &[(80, Protocol::Http), (9090, Protocol::Grpc)])
        .endpoints("web", 80, &[("10.9.0.1", 8080, "v1")])
        .endpoints("web", 9090, &[("10.9.0.1", 9091, "v1")])
}

fn make(kind: ResourceType, name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<Generated> {
    let key = Key { kind, name: name.into(), view: Arc::new(view.clone()) };
    generate(&key, snapshot, |config| Plan::build(&Scope::new(snapshot, &key.view), config).map(Arc::new))
}

fn cluster(name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<Cluster> {
    Some(make(ResourceType::Cluster, name, view, snapshot)?.resource.body.unpack().unwrap())
}

fn endpoints(name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<ClusterLoadAssignment> {
    Some(make(ResourceType::Endpoints, name, view, snapshot)?.resource.body.unpack().unwrap())
}

fn listener(name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<Listener> {
    Some(make(ResourceType::Listener, name, view, snapshot)?.resource.body.unpack().unwrap())
}

fn routes(name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<RouteConfiguration> {
    Some(make(ResourceType::Routes, name, view, snapshot)?.resource.body.unpack().unwrap())
}

fn virtual_host(name: &str, view: &View, snapshot: &MeshSnapshot) -> Option<VirtualHost> {
    Some(make(ResourceType::VirtualHost, name, view, snapshot)?.resource.body.unpack().unwrap())
}

fn of_kind(view: &View, kind: ProxyKind) -> View {
    let mut view = view.clone();
    view.proxy.kind = kind;
    view.schema = (kind == ProxyKind::OnDemand).then_some(1);
    view
}

#[test]
fn listeners_of_a_sidecar() {
    let snapshot = mesh().build();
    let client = view("default", []);
    assert_eq!(
        names(ResourceType::Listener, &client, &snapshot),
        [
            "virtualOutbound",
            "virtualInbound",
            "0.0.0.0_80",
            "0.0.0.0_9090",
            "10.1.0.5_3306", // not 10.9.0.1_3306: that is the client itself
            "10.96.0.2_6379",
            "10.96.0.3_9000",
        ]
    );
    let on_demand = of_kind(&client, ProxyKind::OnDemand);
    let bound = names(ResourceType::Listener, &on_demand, &snapshot);
    assert_eq!(bound, ["virtualOutbound", "virtualInbound"], "those that are bound to a port");
}

#[test]
fn chains_of_listeners() {
    let snapshot = mesh().build();
    let client = view("default", []);
    let chains = |name: &str| {
        let l = listener(name, &client, &snapshot).unwrap();
        let all = l.filter_chains.iter().chain(&l.default_filter_chain);
        all.map(|c| {
            let m = c.filter_chain_match.clone().unwrap_or_default();
            (c.name.clone(), m.destination_port.unwrap_or(0), m.application_protocols.join(","))
        })
        .collect::<Vec<_>>()
    };
    let row = |name: &str, port, protocols: &str| (name.to_string(), port, protocols.to_string());
    assert_eq!(chains("0.0.0.0_80"), [row("", 0, "http/1.1,h2c"), row("PassthroughFilterChain", 0, "")]);
    assert_eq!(chains("10.96.0.2_6379"), [row("", 0, "")]);
    assert_eq!(chains("10.96.0.3_9000"), [row("", 0, "http/1.1,h2c"), row("", 0, "")]);
    assert_eq!(
        chains("virtualInbound"),
        [
            row("virtualInbound-blackhole", 15006, ""),
            row("virtualInbound-catchall-http", 0, "http/1.1,h2c"),
            row("virtualInbound", 0, ""),
            row("0.0.0.0_3306", 3306, ""),
            row("0.0.0.0_8080", 8080, ""),
            row("0.0.0.0_9091", 9091, ""),
        ]
    );
    assert!(listener("10.96.0.1_80", &client, &snapshot).is_none(), "HTTP is found by its port");
    assert!(listener("10.9.0.1_3306", &client, &snapshot).is_none(), "the client itself");
    assert!(listener("0.0.0.0_15001", &client, &snapshot).is_none());
    assert!(listener("0.0.0.0_81", &client, &snapshot).is_none());
    let http10 = View { http10: true, ..client.clone() };
    let l = listener("0.0.0.0_80", &http10, &snapshot).unwrap();
    assert_eq!(
        l.filter_chains[0].filter_chain_match.as_ref().unwrap().application_protocols,
        ["http/1.0", "http/1.1", "h2c"]
    );
}

#[test]
fn mutual_tls_is_automatic_unless_the_mesh_says_otherwise() {
    let mut client = view("default", []);
    client.proxy.mutual_tls = true;
    for auto_mutual_tls in [true, false] {
        let mut mesh = mesh();
        mesh.mesh.auto_mutual_tls = auto_mutual_tls;
        let name = "outbound|80||reviews.default.svc.cluster.local";
        let cluster = cluster(name, &client, &mesh.build()).unwrap();
        assert_eq!(!cluster.transport_socket_matches.is_empty(), auto_mutual_tls);
        assert_eq!(cluster.transport_socket, None);
    }
}

#[test]
fn who_calls_the_proxys_own_ports_is_closed() {
    use osier_proto::types::listener::filter::ConfigType;
    use osier_proto::types::tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier};
    let snapshot = mesh().build();
    for (name, port) in [("virtualInbound", 15006), ("virtualOutbound", 15001)] {
        let l = listener(name, &view("default", []), &snapshot).unwrap();
        let mut chains = l.filter_chains.iter();
        let chain =
            chains.find(|c| c.filter_chain_match.as_ref().is_some_and(|m| m.destination_port == Some(port)));
        let chain = chain.unwrap_or_else(|| panic!("{name} has no such chain"));
        let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else { panic!("{name}") };
        let proxy: TcpProxy = config.unpack().unwrap();
        let nowhere = ClusterSpecifier::Cluster("BlackHoleCluster".into());
        assert_eq!(proxy.cluster_specifier, Some(nowhere), "{name}");
    }
}

#[test]
fn a_pod_is_captured_by_one_socket_whatever_its_families() {
    let fixture = mesh().service("own", None, &[(8080, Protocol::Http)]);
    let snapshot =
        fixture.endpoints("own", 8080, &[("10.9.0.1", 8080, "v1"), ("fd00::9", 8080, "v1")]).build();
    let (v4, v6) = ("10.9.0.1", "fd00::9");
    for (own, address, sources) in [
        (&[v4][..], ("0.0.0.0", false), &["127.0.0.6"][..]),
        (&[v6], ("::", false), &["::6"]),
        (&[v4, v6], ("::", true), &["127.0.0.6", "::6"]),
        (&[v6, v4], ("::", true), &["127.0.0.6", "::6"]),
    ] {
        let mut client = view("default", []);
        client.proxy.addresses = own.iter().map(|ip| ip.parse().unwrap()).collect();
        client.ipv6 = own.contains(&v6);
        for name in ["virtualInbound", "virtualOutbound"] {
            let json = osier_proto::json::to_value(&listener(name, &client, &snapshot).unwrap());
            let at = &json["address"]["socket_address"];
            let found = (at["address"].as_str().unwrap(), at["ipv4_compat"].as_bool().unwrap_or(false));
            assert_eq!(found, address, "{name} of {own:?}");
        }
        let bind = cluster("inbound|8080||", &client, &snapshot).unwrap().upstream_bind_config.unwrap();
        let extra = bind.extra_source_addresses.into_iter().filter_map(|extra| extra.address);
        let found: Vec<_> = bind.source_address.into_iter().chain(extra).map(|from| from.address).collect();
        assert_eq!(found, sources, "{own:?}");
    }
}

#[test]
fn inspectors_run_only_where_a_chain_needs_them() {
    let snapshot = mesh().build();
    let client = view("default", []);
    let filters = |name: &str| {
        let l = listener(name, &client, &snapshot).unwrap();
        l.listener_filters.iter().map(|f| f.name.rsplit('.').next().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(filters("10.96.0.2_6379"), [""; 0], "a server may speak first");
    assert_eq!(filters("10.1.0.5_3306"), [""; 0]);
    assert_eq!(filters("10.96.0.3_9000"), ["tls_inspector", "http_inspector"]);
    assert_eq!(filters("virtualInbound"), ["original_dst", "http_inspector"], "of ports without a service");
    let port = |port: u16| format!(r#"{{"destination_port_range":{{"end":{},"start":{port}}}}}"#, port + 1);
    for (declared, wanted) in [
        (&[(9000, Protocol::Auto)][..], &[3306, 8080, 9091, 15006][..]),
        (
            &[(5432, Protocol::Tcp), (9000, Protocol::Auto), (9080, Protocol::Http)],
            &[3306, 5432, 8080, 9080, 9091, 15006],
        ),
    ] {
        let rules: Vec<String> = wanted.iter().map(|number| port(*number)).collect();
        let wanted = format!(r#"{{"or_match":{{"rules":[{}]}}}}"#, rules.join(","));
        let mut fixture = mesh().service("own", Some("10.96.0.9"), declared);
        for (port, _) in declared {
            fixture = fixture.endpoints("own", *port, &[("10.9.0.1", *port, "v1")]);
        }
        let made = listener("virtualInbound", &client, &fixture.build()).unwrap();
        let json = osier_proto::json::to_value(&made.listener_filters[1]);
        assert_eq!(json["filter_disabled"].to_string(), wanted, "MySQL on 3306 may speak first");
    }
}

#[test]
fn domains_depend_on_the_clients_namespace() {
    let snapshot = mesh().service("stateful", None, &[(80, Protocol::Http)]).build();
    let domains = |namespace: &str, host: &str| {
        let config = routes("80", &view(namespace, []), &snapshot).unwrap();
        let found = config.virtual_hosts.into_iter().find(|v| v.name == host).unwrap();
        found.domains.into_iter().collect::<BTreeSet<String>>()
    };
    let set = |all: &[&str]| all.iter().map(|d| d.to_string()).collect::<BTreeSet<String>>();
    let everywhere = [
        "reviews.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
        "reviews.default.svc",
        "reviews.default",
        "10.96.0.1",
    ];
    let host = "reviews.default.svc.cluster.local:80";
    assert_eq!(domains("other", host), set(&everywhere));
    assert_eq!(domains("default", host), set(&[&everywhere[..], &["reviews"]].concat()));
    let headless = domains("default", "stateful.default.svc.cluster.local:80");
    for name in ["stateful", "*.stateful", "*.stateful.default.svc.cluster.local", "stateful.default.svc"] {
        assert!(headless.contains(name), "{name} of {headless:?}");
    }
}

#[test]
fn a_short_name_that_is_somebodys_host_is_not_taken() {
    let mut fixture = mesh();
    fixture.services.push(entry("reviews.default", ServiceKind::Dns, &[], &[(80, Protocol::Http)]));
    let snapshot = fixture.build();
    let config = routes("80", &view("default", []), &snapshot).unwrap();
    let owner = |domain: &str| {
        let owners: Vec<&str> = config
            .virtual_hosts
            .iter()
            .filter(|v| v.domains.iter().any(|d| d == domain))
            .map(|v| v.name.as_str())
            .collect();
        assert_eq!(owners.len(), 1, "{domain}: {owners:?}");
        owners[0].to_string()
    };
    assert_eq!(owner("reviews.default"), "reviews.default:80");
    assert_eq!(owner("reviews"), "reviews.default.svc.cluster.local:80");
}

#[test]
fn unknown_hosts() {
    let open = mesh().build();
    let config = routes("80", &view("default", []), &open).unwrap();
    let last = config.virtual_hosts.last().unwrap();
    assert_eq!((last.name.as_str(), &last.domains[..]), ("allow_any", &["*".to_string()][..]));
    assert_eq!(super::route::clusters_of(last), ["PassthroughCluster"]);
    let mut fixture = mesh();
    fixture.mesh.outbound = OutboundTraffic::RegistryOnly;
    let closed = fixture.build();
    let config = routes("80", &view("default", []), &closed).unwrap();
    let json = osier_proto::json::to_value(config.virtual_hosts.last().unwrap());
    assert_eq!(json["name"], "block_all");
    assert_eq!(json["routes"][0]["direct_response"]["status"], 502);
    let service = routes("auto.default.svc.cluster.local:9000", &view("default", []), &closed).unwrap();
    assert_eq!(service.virtual_hosts.len(), 1, "one service's own routes have no catch-all");
    assert_eq!(service.virtual_hosts[0].domains, ["*"]);
}

#[test]
fn explicit_proxies_route_by_host_and_port() {
    let snapshot = mesh().build();
    let mut client = view("default", []);
    client.proxy.interception = Interception::None;
    client.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
    assert_eq!(
        names(ResourceType::Listener, &client, &snapshot),
        ["10.9.0.1_3306", "10.9.0.1_8080", "10.9.0.1_9091", "10.9.0.1_15007"]
    );
    let mut both = client.clone();
    both.proxy.addresses = [client.proxy.addresses[0], "fd00::9".parse().unwrap()].into();
    let of_ipv6 = ["fd00::9_3306", "fd00::9_8080", "fd00::9_9091"];
    assert_eq!(names(ResourceType::Listener, &both, &snapshot)[4..], of_ipv6, "each of its own addresses");
    assert!(listener("fd00::9_8080", &both, &snapshot).is_some());
    let config = routes("http_proxy", &client, &snapshot).unwrap();
    let of = |name: &str| config.virtual_hosts.iter().find(|v| v.name == name).unwrap().domains.clone();
    let web = of("web.default.svc.cluster.local:80");
    assert!(web.contains(&"web".to_string()) && web.contains(&"web:80".to_string()));
    let grpc = of("web.default.svc.cluster.local:9090");
    assert!(grpc.contains(&"web:9090".to_string()) && !grpc.contains(&"web".to_string()));
    assert!(!config.ignore_port_in_host_matching);
    let inbound = cluster("inbound|8080||", &client, &snapshot).unwrap();
    let json = osier_proto::json::to_value(&inbound);
    let address = &json["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socket_address"]["address"], "127.0.0.1");
    assert_eq!(address["socket_address"]["port_value"], 8080);
    let registered = View { app_port: Some(5000), ..client };
    let json = osier_proto::json::to_value(&cluster("inbound|8080||", &registered, &snapshot).unwrap());
    let address = &json["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socket_address"]["port_value"], 5000);
}

#[test]
fn clients_of_an_explicit_proxy_reach_what_the_mesh_does_not_know() {
    let mut fixture = mesh();
    fixture.services.push(entry("*.example.com", ServiceKind::Static, &[], &[(443, Protocol::Tls)]));
    let mut client = of_kind(&view("default", []), ProxyKind::OnDemand);
    client.proxy.interception = Interception::None;
    client.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
    let open = fixture.clone().build();
    fixture.mesh.outbound = OutboundTraffic::RegistryOnly;
    let closed = fixture.build();

    let http = |host: &str, snapshot: &MeshSnapshot| {
        let found = virtual_host(&format!("http_proxy/{host}"), &client, snapshot).unwrap();
        (found.name.clone(), super::route::clusters_of(&found).join(" "))
    };
    for (host, cluster) in [
        ("nobody.org", "passthrough|80||nobody.org"),
        ("nobody.org:8080", "passthrough|8080||nobody.org"),
        ("127.0.0.5:8080", "passthrough|8080||127.0.0.5"),
        ("[::1]:8080", "passthrough|8080||::1"),
        ("no|body", "PassthroughCluster"),
    ] {
        assert_eq!(http(host, &open), ("allow_any".into(), cluster.into()), "{host}");
        assert_eq!(http(host, &closed), ("block_all".into(), String::new()), "{host}");
    }
    assert_eq!(http("web", &open).1, "outbound|80||web.default.svc.cluster.local");

    let tcp = |name: &str, snapshot: &MeshSnapshot| {
        let found = make(ResourceType::Listener, name, &client, snapshot)?;
        Some(found.clusters.join(" "))
    };
    for (name, cluster) in [
        ("nobody.org_443", Some("passthrough|443||nobody.org")),
        ("a.example.com_443", None),
        ("a.example.com_444", Some("passthrough|444||a.example.com")),
        ("web_4444", Some("passthrough|4444||web")),
        ("0.0.0.0_4444", Some("PassthroughCluster")),
        ("10.1.2.3_4444", None),
    ] {
        assert_eq!(tcp(name, &open).as_deref(), cluster, "{name}");
        assert_eq!(tcp(name, &closed), None, "{name}");
    }

    let made = cluster("passthrough|443||nobody.org", &client, &open).unwrap();
    assert_eq!(
        made.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32))
    );
    assert!(cluster("passthrough|443||nobody.org", &client, &closed).is_none());
    assert!(cluster("passthrough|443||nobody.org", &view("default", []), &open).is_none(), "captured");

    let own = listener("10.9.0.1_15007", &client, &open).unwrap();
    let matched = own.filter_chains[0].filter_chain_match.as_ref().unwrap();
    assert_eq!(matched.source_type, ConnectionSourceType::SameIpOrLoopback as i32);
}

#[test]
fn discovery_by_kind_of_service() {
    let mut fixture = mesh();
    let dns = entry("api.example.com", ServiceKind::Dns, &[], &[(443, Protocol::Tls)]);
    fixture.endpoints.push((dns.key.clone(), 443, vec![endpoint("lb.example.com", 443, "api", "v1")]));
    fixture.services.push(dns);
    fixture.services.push(entry(
        "any.example.com",
        ServiceKind::Passthrough,
        &["10.5.0.0/16"],
        &[(5432, Protocol::Tcp)],
    ));
    let alias = ServiceKind::ExternalName(Host::new("reviews.default.svc.cluster.local"));
    fixture.services.push(crate::model::Service { kind: alias, ..kubernetes("alias", "default", None, &[]) });
    let snapshot = fixture.build();
    let client = view("default", []);
    let kind = |name: &str| match cluster(name, &client, &snapshot)?.cluster_discovery_type? {
        ClusterDiscoveryType::Type(kind) => DiscoveryType::try_from(kind).ok(),
    };
    for (name, wanted) in [
        ("outbound|80||reviews.default.svc.cluster.local", Some(DiscoveryType::Eds)),
        ("outbound|80|v1|reviews.default.svc.cluster.local", Some(DiscoveryType::Eds)),
        ("outbound|80|v3|reviews.default.svc.cluster.local", None),
        ("outbound|81||reviews.default.svc.cluster.local", None),
        ("outbound|3306||db.default.svc.cluster.local", Some(DiscoveryType::OriginalDst)),
        ("outbound|443||api.example.com", Some(DiscoveryType::StrictDns)),
        ("outbound|5432||any.example.com", Some(DiscoveryType::OriginalDst)),
        ("outbound|80||alias.default.svc.cluster.local", None),
        ("PassthroughCluster", Some(DiscoveryType::OriginalDst)),
        ("BlackHoleCluster", Some(DiscoveryType::Static)),
        ("inbound|8080||", Some(DiscoveryType::OriginalDst)),
        ("inbound|1||", None),
        ("nonsense", None),
    ] {
        assert_eq!(kind(name), wanted, "{name}");
    }
    let l = listener("0.0.0.0_5432", &client, &snapshot).unwrap();
    assert_eq!(
        l.filter_chains[0].filter_chain_match.as_ref().unwrap().prefix_ranges[0].address_prefix,
        "10.5.0.0"
    );
    assert_eq!(l.default_filter_chain.unwrap().name, "PassthroughFilterChain");
    let l = listener("0.0.0.0_443", &client, &snapshot).unwrap();
    assert_eq!(l.filter_chains[0].filter_chain_match.as_ref().unwrap().server_names, ["api.example.com"]);
    let with_alias = routes("80", &client, &snapshot).unwrap();
    let reviews = with_alias.virtual_hosts.iter().find(|v| v.name.starts_with("reviews")).unwrap();
    assert!(reviews.domains.contains(&"alias.default.svc.cluster.local".to_string()));
}

#[test]
fn subsets_choose_endpoints() {
    let snapshot = mesh().build();
    let client = view("default", []);
    let ips = |name: &str| {
        let json = osier_proto::json::to_value(&endpoints(name, &client, &snapshot).unwrap());
        let groups = json["endpoints"].as_array().cloned().unwrap_or_default();
        let all = groups.iter().flat_map(|g| g["lb_endpoints"].as_array().unwrap().clone());
        all.map(|e| e["endpoint"]["address"]["socket_address"]["address"].as_str().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(ips("outbound|80||reviews.default.svc.cluster.local"), ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(ips("outbound|80|v2|reviews.default.svc.cluster.local"), ["10.1.0.2"]);
    assert_eq!(endpoints("outbound|80|v3|reviews.default.svc.cluster.local", &client, &snapshot), None);
    let json = osier_proto::json::to_value(
        &endpoints("outbound|80|v2|reviews.default.svc.cluster.local", &client, &snapshot).unwrap(),
    );
    assert_eq!(
        json["endpoints"][0]["lb_endpoints"][0]["metadata"]["filter_metadata"]["istio"]["workload"],
        "reviews-v2;default;reviews;v2;Kubernetes"
    );
}

#[test]
fn grpc_clients_get_api_listeners_round_robin_and_localities() {
    let snapshot = mesh()
        .rule(
            "web",
            vec![
                route(
                    vec![HttpMatch { uri: Some(StringMatch::Prefix("/old".into())), ..HttpMatch::default() }],
                    HttpAction::Redirect(Redirect {
                        status: 301,
                        path: RedirectPath::Replace("/new".into()),
                        authority: None,
                        scheme: None,
                        port: None,
                    }),
                ),
                split("web", &[("", 1)]),
            ],
        )
        .build();
    let client = of_kind(&view("default", []), ProxyKind::Grpc);
    assert!(names(ResourceType::Listener, &client, &snapshot).is_empty());
    for name in [
        "web.default.svc.cluster.local:9090",
        "web.default.svc.cluster.local",
        "web:9090",
        "web.default:9090",
        "web.default.svc:9090",
    ] {
        let made = make(ResourceType::Listener, name, &client, &snapshot).unwrap();
        let l: Listener = made.resource.body.unpack().unwrap();
        assert_eq!(l.name, name, "the name is the one that was asked for");
        let json = osier_proto::json::to_value(&l);
        let manager = &json["api_listener"]["api_listener"];
        assert_eq!(
            manager["rds"]["route_config_name"], "outbound|9090||web.default.svc.cluster.local",
            "{name}: {json}"
        );
    }
    assert!(listener("web.default.svc.cluster.local:1", &client, &snapshot).is_none());
    let config = routes("outbound|9090||web.default.svc.cluster.local", &client, &snapshot).unwrap();
    assert_eq!(config.virtual_hosts.len(), 1);
    assert_eq!(config.virtual_hosts[0].routes.len(), 1, "a redirect would be refused");
    let json = osier_proto::json::to_value(
        &cluster("outbound|3306||db.default.svc.cluster.local", &client, &snapshot).unwrap(),
    );
    assert_eq!(json["type"], "EDS", "there is nothing else for gRPC: {json}");
    assert!(json.get("lb_policy").is_none(), "ROUND_ROBIN is the default");
    let json = osier_proto::json::to_value(
        &endpoints("outbound|9090||web.default.svc.cluster.local", &client, &snapshot).unwrap(),
    );
    assert!(json["endpoints"][0]["locality"].is_object(), "{json}");
    assert_eq!(json["endpoints"][0]["load_balancing_weight"], 1);
    let server = listener("xds.istio.io/grpc/lds/inbound/0.0.0.0:50051", &client, &snapshot).unwrap();
    let json = osier_proto::json::to_value(&server);
    assert_eq!(json["address"]["socket_address"]["port_value"], 50051);
}

#[test]
fn filters_of_our_own_go_only_to_clients_that_announce_the_schema() {
    let snapshot = mesh().build();
    let text = |view: &View| {
        osier_proto::json::to_value(&listener("0.0.0.0_80", view, &snapshot).unwrap()).to_string()
    };
    let stock = view("default", []);
    assert!(!text(&stock).contains("osier."));
    let ours = View { schema: Some(1), ..stock };
    assert!(text(&ours).contains("osier.filters.http.peer_metadata"));
}

#[test]
fn on_demand_configurations_carry_only_vhds() {
    let snapshot = mesh().build();
    let client = of_kind(&view("default", []), ProxyKind::OnDemand);
    let config = routes("80", &client, &snapshot).unwrap();
    assert!(config.vhds.is_some() && config.virtual_hosts.is_empty());
    let made = make(ResourceType::VirtualHost, "80/reviews", &client, &snapshot).unwrap();
    assert_eq!(
        made.clusters[..],
        [
            "outbound|80|v1|reviews.default.svc.cluster.local".to_string(),
            "outbound|80|v2|reviews.default.svc.cluster.local".to_string(),
        ]
    );
    assert_eq!(virtual_host("80/reviews", &client, &snapshot).unwrap().domains, ["reviews"]);
    assert_eq!(virtual_host("80/unknown.example.com", &client, &snapshot).unwrap().name, "allow_any");
    assert!(virtual_host("81/reviews", &client, &snapshot).is_none());
    assert!(virtual_host("x/reviews", &client, &snapshot).is_none());
}

#[test]
fn a_tunnel_to_a_host_has_a_listener_of_its_own() {
    let mut fixture = mesh();
    fixture.mesh.outbound = OutboundTraffic::RegistryOnly;
    let snapshot = fixture.build();
    let mut client = of_kind(&view("default", []), ProxyKind::OnDemand);
    client.proxy.interception = Interception::None;
    client.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
    let bound = ["10.9.0.1_3306", "10.9.0.1_8080", "10.9.0.1_9091", "10.9.0.1_15007"];
    assert_eq!(names(ResourceType::Listener, &client, &snapshot), bound);
    let made = |name: &str| make(ResourceType::Listener, name, &client, &snapshot);
    let redis = made("redis.default_6379").unwrap();
    assert_eq!(redis.clusters[..], ["outbound|6379||redis.default.svc.cluster.local".to_string()]);
    for name in ["web_9090", "web.default_9090", "web.default.svc.cluster.local_9090"] {
        assert_eq!(
            made(name).unwrap().routes[..],
            ["web.default.svc.cluster.local:9090".to_string()],
            "{name}"
        );
    }
    assert!(made("db_3306").unwrap().clusters[0].contains("|db."));
    for absent in ["redis_1", "nobody_80", "10.9.0.1_1"] {
        assert!(made(absent).is_none(), "{absent}");
    }
    assert!(
        make(ResourceType::Listener, "redis_6379", &view("default", []), &snapshot).is_none(),
        "only on demand"
    );
}

#[test]
fn many_server_names_are_asked_for_one_by_one() {
    let mut fixture = mesh();
    for n in 0..20 {
        fixture.services.push(entry(
            &format!("s{n}.example.com"),
            ServiceKind::Dns,
            &[],
            &[(443, Protocol::Tls)],
        ));
    }
    fixture.services.push(entry("*.example.com", ServiceKind::Passthrough, &[], &[(443, Protocol::Tls)]));
    let snapshot = fixture.build();
    let all = listener("0.0.0.0_443", &view("default", []), &snapshot).unwrap();
    assert_eq!((all.filter_chains.len(), all.metadata), (21, None));
    let client = of_kind(&view("default", []), ProxyKind::OnDemand);
    let short = listener("0.0.0.0_443", &client, &snapshot).unwrap();
    assert!(short.filter_chains.is_empty() && short.metadata.is_some());
    let one = |sni: &str| {
        let l = listener(&format!("0.0.0.0_443/{sni}"), &client, &snapshot)?;
        assert_eq!(l.filter_chains.len(), 1);
        Some(l.filter_chains[0].filter_chain_match.clone().unwrap().server_names)
    };
    assert_eq!(one("s3.example.com"), Some(vec!["s3.example.com".to_string()]));
    assert_eq!(one("other.example.com"), Some(vec!["*.example.com".to_string()]));
    assert_eq!(one("example.org"), None);
}

/// Everything that a client with wildcards has refers only to what it has as well.
fn check_references(view: &View, snapshot: &MeshSnapshot) {
    let clusters: BTreeSet<String> = names(ResourceType::Cluster, view, snapshot).into_iter().collect();
    for name in &clusters {
        let made =
            cluster(name, view, snapshot).unwrap_or_else(|| panic!("{name} is listed and isn't there"));
        assert_eq!(made.name, *name);
        if made.eds_cluster_config.is_some() {
            assert!(endpoints(name, view, snapshot).is_some(), "{name} has no endpoints resource");
        }
    }
    let mut configs = BTreeSet::new();
    for name in names(ResourceType::Listener, view, snapshot) {
        let made = make(ResourceType::Listener, &name, view, snapshot)
            .unwrap_or_else(|| panic!("listener {name} is listed and isn't there"));
        for used in made.clusters.iter() {
            assert!(clusters.contains(used), "listener {name} refers to {used}");
        }
        configs.extend(made.routes.iter().cloned());
    }
    for name in configs {
        let config = routes(&name, view, snapshot).unwrap_or_else(|| panic!("route configuration {name}"));
        let mut domains = BTreeMap::new();
        for host in &config.virtual_hosts {
            for used in super::route::clusters_of(host) {
                assert!(clusters.contains(&used), "route configuration {name} refers to {used}");
            }
            for domain in &host.domains {
                let before = domains.insert(domain.clone(), &host.name);
                assert_eq!(before, None, "{name}: {domain} twice");
            }
        }
    }
}

#[test]
fn a_full_scope_refers_only_to_what_is_in_it() {
    let snapshot = mesh().build();
    let client = view("default", []);
    check_references(&client, &snapshot);
    check_references(&view("other", []), &snapshot);
    let mut explicit = client.clone();
    explicit.proxy.interception = Interception::None;
    explicit.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
    check_references(&explicit, &snapshot);
}

fn any_mesh() -> impl Strategy<Value = Fixture> {
    let protocol = prop_oneof![
        Just(Protocol::Http),
        Just(Protocol::Grpc),
        Just(Protocol::Tcp),
        Just(Protocol::Tls),
        Just(Protocol::Auto),
        Just(Protocol::Mysql),
    ];
    let port = (prop_oneof![Just(80_u16), Just(443), Just(8080), Just(9090)], protocol);
    let service = (0_u8..6, prop::bool::ANY, prop::collection::vec(port, 1..3), 0_u8..3);
    let external = (0_u8..4, 0_u8..4, prop_oneof![Just(80_u16), Just(443)], prop::bool::ANY);
    let hosts =
        prop::collection::vec(prop_oneof![Just("*.example.com"), Just("a.example.com"), Just("*")], 0..3);
    (prop::collection::vec(service, 0..6), prop::collection::vec(external, 0..4), hosts).prop_map(
        |(services, externals, hosts)| {
            let mut fixture = Fixture::default();
            for (n, headless, mut ports, pods) in services {
                let name = format!("s{n}");
                ports.dedup_by_key(|(number, _)| *number);
                let ip = format!("10.96.0.{n}");
                let address = (!headless).then_some(ip.as_str());
                for (number, _) in &ports {
                    let made =
                        (0..pods).map(|p| endpoint(&format!("10.1.{n}.{p}"), *number, &name, "v1")).collect();
                    fixture.endpoints.push((key(&name, "default"), *number, made));
                }
                fixture = fixture.service(&name, address, &ports).subsets(&name, &["v1"]);
            }
            for (n, kind, port, http) in externals {
                let host = ["a.example.com", "b.example.com", "*.example.com", "s1.default"][usize::from(n)];
                let (kind, addresses): (ServiceKind, &[&str]) = match kind {
                    0 => (ServiceKind::Static, &["10.7.0.1"]),
                    1 => (ServiceKind::Passthrough, &["10.8.0.0/16"]),
                    2 => (ServiceKind::Static, &[]),
                    _ => (ServiceKind::Passthrough, &[]),
                };
                let protocol = if http { Protocol::Http } else { Protocol::Tls };
                fixture.services.push(entry(host, kind, addresses, &[(port, protocol)]));
            }
            for (n, host) in hosts.into_iter().enumerate() {
                let direct = HttpAction::Direct(DirectResponse { status: 204, body: Default::default() });
                fixture.rules.push(Arc::new(rule(
                    &format!("r{n}"),
                    Host::new(host),
                    vec![route(vec![], direct)],
                )));
            }
            fixture
        },
    )
}

/// Envoy's look-up in a full configuration.
fn envoys_choice<'a>(config: &'a RouteConfiguration, host: &str) -> Option<&'a VirtualHost> {
    let rank = |domain: &String| match domain.strip_prefix('*') {
        None => (domain == host).then_some(usize::MAX),
        Some("") => Some(0),
        Some(suffix) => (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len()),
    };
    let best = |v: &&VirtualHost| v.domains.iter().filter_map(rank).max();
    config.virtual_hosts.iter().filter(|v| best(v).is_some()).max_by_key(best)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_scope_refers_only_to_what_is_in_it(fixture in any_mesh(), own in 0_u8..6) {
        let snapshot = fixture.build();
        let mut client = view("default", []);
        client.proxy.addresses = [format!("10.1.{own}.0").parse().unwrap()].into();
        check_references(&client, &snapshot);
        client.proxy.interception = Interception::None;
        client.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
        check_references(&client, &snapshot);
    }

    /// What is cut from a view makes no difference to any resource of the type.
    #[test]
    fn nothing_depends_on_what_is_cut_from_a_view(fixture in any_mesh(), none in prop::bool::ANY, kind in 0_u8..3) {
        let snapshot = fixture.build();
        let sensitivity = super::sensitivity(&snapshot);
        let kind = [ProxyKind::Envoy, ProxyKind::OnDemand, ProxyKind::Grpc][usize::from(kind)];
        let mut client = of_kind(&view("default", [("app", "client")]), kind);
        if none {
            client.proxy.interception = Interception::None;
            client.explicit_proxy = Some("10.9.0.1:15007".parse().unwrap());
        }
        let views = Views::new(Arc::new(client.clone()), &sensitivity);
        let outbound: Vec<String> = names(ResourceType::Cluster, &of_kind(&client, ProxyKind::Envoy), &snapshot)
            .into_iter()
            .filter(|n| n.starts_with("outbound|"))
            .collect();
        let routes = ["80", "443", "8080", "http_proxy", "s1.default.svc.cluster.local:80"].map(String::from);
        let hosts = ["80/s1", "8080/s2", "http_proxy/s3:9090", "80/nobody", "http_proxy/nobody:81"].map(String::from);
        let mut listeners = names(ResourceType::Listener, &of_kind(&client, ProxyKind::Envoy), &snapshot);
        listeners.extend(["0.0.0.0_443", "0.0.0.0_443/a.example.com", "10.7.0.1_443", "s1_80", "s2.default_9090", "nobody_81", "0.0.0.0_81"].map(String::from));
        let mut clusters = outbound.clone();
        clusters.push("passthrough|81||nobody".into());
        for (kind, names) in [
            (ResourceType::Listener, listeners),
            (ResourceType::Cluster, clusters),
            (ResourceType::Endpoints, outbound),
            (ResourceType::Routes, routes.to_vec()),
            (ResourceType::VirtualHost, hosts.to_vec()),
            (ResourceType::NameTable, ["", "s1", "s2.default", "s3.default.svc.cluster.local", "a.example.com"].map(String::from).to_vec()),
        ] {
            for name in names {
                let body = |view: &View| make(kind, &name, view, &snapshot).map(|m| m.resource.body);
                prop_assert_eq!(body(views.of(kind, &name)), body(&client), "{:?} {}", kind, name);
            }
        }
    }

    /// The one virtual host that is given on demand is the one that Envoy would choose in the full configuration.
    #[test]
    fn on_demand_and_full_configurations_agree(fixture in any_mesh()) {
        let snapshot = fixture.build();
        let full = view("default", []);
        let asking = of_kind(&full, ProxyKind::OnDemand);
        for port in ["80", "8080"] {
            let Some(config) = routes(port, &full, &snapshot) else {
                let made = virtual_host(&format!("{port}/s1"), &asking, &snapshot);
                prop_assert!(made.is_none());
                continue;
            };
            for host in ["s1", "s1.default", "s2.default.svc.cluster.local", "x.s3", "10.96.0.4", "a.example.com", "b.example.com", "z.z.example.com", "example.com", "nobody"] {
                let wanted = envoys_choice(&config, host).map(|v| (v.name.clone(), v.routes.clone()));
                let got = virtual_host(&format!("{port}/{host}"), &asking, &snapshot).map(|v| (v.name, v.routes));
                prop_assert_eq!(got, wanted, "{}/{}", port, host);
            }
        }
    }
}

/// A mesh with an Ingress whose hosts have certificates, and a gateway that serves it.
fn with_certificates() -> (MeshSnapshot, View) {
    use crate::model::{
        Age, BackendPort, Credential, Ingress, IngressBackend, IngressMode, IngressPolicy, IngressTls, Kind,
        ResourceKey, TlsSecret,
    };
    use crate::snapshot::IngressIndex;
    let tls = |hosts: &[&str], secret: &str| IngressTls {
        hosts: hosts.iter().map(|host| osier_core::host::Host::new(host)).collect(),
        secret: secret.into(),
    };
    let ingress = Ingress {
        key: ResourceKey::new(Kind::Ingress, "shop", "web"),
        age: Age { created: 0, name: "web".into(), namespace: "shop".into() },
        annotated_class: None,
        class: None,
        default_backend: Some(IngressBackend { service: "web".into(), port: BackendPort::Number(80) }),
        rules: vec![],
        tls: vec![tls(&["a.example", "*.b.example"], "ab"), tls(&[], "rest")],
    };
    let policy = IngressPolicy { mode: IngressMode::Default, ..IngressPolicy::default() };
    let mut snapshot = Fixture::default().build();
    snapshot.ingresses = Arc::new(IngressIndex::build([Arc::new(ingress)], &Default::default(), &policy));
    let own = || Some(TlsSecret { chain: b"chain".as_slice().into(), key: b"key".as_slice().into() });
    let roots = |text: &str| Some(text.as_bytes().into());
    let entry = |name: &str, own, roots| (("edge".into(), name.into()), Arc::new(Credential { own, roots }));
    snapshot.secrets = Arc::new(
        [
            entry("ab", own(), roots("beside")),
            entry("cd", own(), roots("beside")),
            entry("cd-cacert", None, roots("apart")),
            entry("ef", own(), None),
        ]
        .into(),
    );
    let mut gateway = view("edge", [("istio", "ingressgateway")]);
    gateway.proxy.gateway = true;
    gateway.secrets_of = Some(SecretsOf { namespace: "edge".into(), keys: true });
    (snapshot, gateway)
}

#[test]
fn a_gateway_serves_tls_by_server_name() {
    let (snapshot, gateway) = with_certificates();
    let names = names(ResourceType::Listener, &gateway, &snapshot);
    assert_eq!(names, ["0.0.0.0_8080", "0.0.0.0_8443"]);
    let made = listener("0.0.0.0_8443", &gateway, &snapshot).unwrap();
    let chains: Vec<_> = made
        .filter_chains
        .iter()
        .map(|chain| {
            let matched = chain.filter_chain_match.clone().unwrap_or_default();
            (
                chain.name.as_str(),
                matched.server_names,
                matched.transport_protocol,
                chain.transport_socket.is_some(),
            )
        })
        .collect();
    let hosts = vec!["a.example".to_string(), "*.b.example".to_string()];
    assert_eq!(
        chains,
        [("shop/web/0", hosts, "tls".into(), true), ("shop/web/1", vec![], "tls".into(), true)]
    );
    assert!(make(ResourceType::Routes, "https.8443", &gateway, &snapshot).is_some());
    for other in ["http.8443", "https.8080", "https.x"] {
        assert!(make(ResourceType::Routes, other, &gateway, &snapshot).is_none(), "{other}");
    }
    let mut unproven = gateway.clone();
    unproven.secrets_of = Some(SecretsOf { namespace: "edge".into(), keys: false });
    assert_eq!(super::names(ResourceType::Listener, &unproven, &snapshot), ["0.0.0.0_8080"]);
    let mut other = gateway.clone();
    other.proxy.labels = [("istio", "egressgateway")].into();
    assert!(super::names(ResourceType::Listener, &other, &snapshot).is_empty());
    assert!(listener("0.0.0.0_8080", &other, &snapshot).is_none());
}

#[test]
fn certificates_go_to_their_own_namespace_alone() {
    let (snapshot, gateway) = with_certificates();
    let secret = |name: &str, view: &View| make(ResourceType::Secret, name, view, &snapshot);
    let made = secret("kubernetes://edge/ab", &gateway).unwrap();
    let made: osier_proto::types::tls::Secret = made.resource.body.unpack().unwrap();
    assert_eq!(made.name, "kubernetes://edge/ab");
    assert!(secret("kubernetes://edge/rest", &gateway).is_none(), "it is not there");
    for (namespace, name) in [
        (None, "kubernetes://edge/ab"),
        (Some("shop"), "kubernetes://edge/ab"),
        (Some("edge"), "kubernetes://shop/ab"),
        (Some("edge"), "edge/ab"),
    ] {
        let mut other = gateway.clone();
        other.secrets_of = namespace.map(|namespace| SecretsOf { namespace: namespace.into(), keys: true });
        assert!(secret(name, &other).is_none(), "{namespace:?} {name}");
    }
}

#[test]
fn roots_in_secrets_need_no_right_to_keys_and_stand_apart_or_beside_a_certificate() {
    use osier_proto::types::core::data_source::Specifier;
    use osier_proto::types::tls::{Secret, secret::Type};
    let (snapshot, mut client) = with_certificates();
    client.secrets_of = Some(SecretsOf { namespace: "edge".into(), keys: false });
    let roots = |name: &str, view: &View| {
        let made: Secret = make(ResourceType::Secret, name, view, &snapshot)?.resource.body.unpack().unwrap();
        let Some(Type::ValidationContext(context)) = made.r#type else { panic!("{name}: a key") };
        match context.trusted_ca.unwrap().specifier.unwrap() {
            Specifier::InlineBytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    };
    for (name, wanted) in [
        ("kubernetes://edge/ab-cacert", Some("beside")),
        ("kubernetes://edge/cd-cacert", Some("apart")),
        ("kubernetes://edge/ef-cacert", None),
        ("kubernetes://edge/nobody-cacert", None),
        ("kubernetes://shop/ab-cacert", None),
        ("kubernetes://edge/ab", None),
    ] {
        assert_eq!(roots(name, &client).as_deref(), wanted, "{name}");
    }
    client.secrets_of = None;
    assert_eq!(roots("kubernetes://edge/ab-cacert", &client), None, "who has proved nothing");
}

#[test]
fn roots_go_to_those_who_have_proved_who_they_are() {
    use osier_proto::types::tls::{Secret, secret::Type};
    let mut snapshot = Fixture::default().build();
    let mut proven = view("default", []);
    proven.proxy.mutual_tls = true;
    assert!(make(ResourceType::Secret, "ROOTCA", &proven, &snapshot).is_none(), "there are none yet");
    snapshot.roots = Some("roots".into());
    let made = make(ResourceType::Secret, "ROOTCA", &proven, &snapshot).unwrap();
    let made: Secret = made.resource.body.unpack().unwrap();
    assert!(matches!(made.r#type, Some(Type::ValidationContext(_))));
    proven.proxy.mutual_tls = false;
    assert!(make(ResourceType::Secret, "ROOTCA", &proven, &snapshot).is_none());
}
