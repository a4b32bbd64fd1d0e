//! Rules of visibility and precedence, row by row, and what a connection was meant for.

use std::sync::Arc;

use osier_core::host::Host;
use osier_core::labels::Labels;

use super::*;
use crate::model::*;

fn view(namespace: &str) -> ProxyView {
    ProxyView {
        kind: ProxyKind::Envoy,
        gateway: false,
        mutual_tls: false,
        namespace: namespace.into(),
        name: "".into(),
        labels: Labels::default(),
        addresses: Box::default(),
        interception: Interception::Redirect,
        dns_capture: false,
        node: "".into(),
    }
}

fn age(created: i64, namespace: &str, name: &str) -> Age {
    Age { created, name: name.into(), namespace: namespace.into() }
}

fn service(namespace: &str, host: &str, created: i64, ports: &[(u16, Protocol)]) -> Service {
    let port = |(number, protocol): &(u16, Protocol)| ServicePort {
        number: *number,
        name: "".into(),
        protocol: *protocol,
        target: TargetPort::Number(*number),
    };
    Service {
        key: ServiceKey { host: Host::new(host), namespace: namespace.into() },
        name: host.split('.').next().unwrap_or_default().into(),
        source: ServiceSource::Kubernetes,
        resource: ResourceKey::new(Kind::Service, namespace, host),
        age: age(created, namespace, host),
        kind: ServiceKind::ClusterIp,
        addresses: vec![],
        ports: ports.iter().map(port).collect(),
        export_to: ExportTo::default(),
        exports: Exports::Public,
        location: Location::Internal,
        subject_alt_names: vec![],
        selector: None,
        labels: Labels::default(),
        publish_not_ready: false,
        node_local: false,
        claimed: vec![],
        automatic: vec![],
    }
}

fn entry(namespace: &str, host: &str, created: i64, ports: &[(u16, Protocol)]) -> Service {
    let mut service = service(namespace, host, created, ports);
    service.source = ServiceSource::ServiceEntry;
    service.kind = ServiceKind::Static;
    service
}

fn to(host: &str) -> HttpRoute {
    let destination = Destination { host: Host::new(host), subset: None, port: None };
    HttpRoute {
        name: "".into(),
        matches: vec![],
        action: HttpAction::Forward(vec![WeightedDestination {
            destination,
            weight: 1,
            headers: HeaderOps::default(),
        }]),
        headers: HeaderOps::default(),
        rewrite: Rewrite::default(),
        timeout: None,
        retries: None,
    }
}

fn rule(namespace: &str, name: &str, created: i64, hosts: &[&str]) -> RouteRule {
    RouteRule {
        key: ResourceKey::new(Kind::VirtualService, namespace, name),
        age: age(created, namespace, name),
        hosts: hosts.iter().map(|h| Host::new(h)).collect(),
        gateways: vec![GatewayRef::Mesh],
        export_to: ExportTo::default(),
        http: vec![to("x")],
        tls: vec![],
        tcp: vec![],
    }
}

fn policy(namespace: &str, name: &str, created: i64, host: &str) -> DestinationPolicy {
    DestinationPolicy {
        key: ResourceKey::new(Kind::DestinationRule, namespace, name),
        merged: vec![],
        age: age(created, namespace, name),
        host: Host::new(host),
        export_to: ExportTo::default(),
        selector: None,
        policy: None,
        subsets: vec![],
    }
}

struct Mesh {
    services: Vec<Service>,
    rules: Vec<RouteRule>,
    policies: Vec<DestinationPolicy>,
}

impl Mesh {
    fn freeze(self) -> MeshSnapshot {
        let all = ExportTo::default();
        MeshSnapshot {
            services: Arc::new(ServiceIndex::build(self.services, &all)),
            routes: Arc::new(RouteIndex::build(self.rules.into_iter().map(Arc::new), &all)),
            policies: Arc::new(PolicyIndex::build(self.policies.into_iter().map(Arc::new), &all)),
            ..MeshSnapshot::default()
        }
    }
}

fn services(services: Vec<Service>) -> MeshSnapshot {
    Mesh { services, rules: vec![], policies: vec![] }.freeze()
}

#[test]
fn conflicts_of_hosts() {
    let exported = |mut s: Service, to: &[&str]| {
        s.export_to = ExportTo(to.iter().map(|t| Arc::from(*t)).collect());
        s
    };
    // (what, services, client, winner's namespace and age)
    for (what, all, client, wanted) in [
        (
            "same namespace, both SE: oldest",
            vec![entry("a", "h", 2, &[]), entry("a", "h", 1, &[])],
            "z",
            Some(("a", 1)),
        ),
        (
            "k8s beats an older SE",
            vec![entry("a", "h", 1, &[]), service("a", "h", 2, &[])],
            "z",
            Some(("a", 2)),
        ),
        (
            "own namespace first",
            vec![service("a", "h", 1, &[]), entry("b", "h", 2, &[])],
            "b",
            Some(("b", 2)),
        ),
        ("then k8s", vec![entry("a", "h", 1, &[]), service("b", "h", 2, &[])], "z", Some(("b", 2))),
        ("then oldest", vec![entry("a", "h", 2, &[]), entry("b", "h", 1, &[])], "z", Some(("b", 1))),
        (
            "tie: by name, then namespace",
            vec![entry("b", "h", 1, &[]), entry("a", "h", 1, &[])],
            "z",
            Some(("a", 1)),
        ),
        (
            "unseen ones do not count",
            vec![exported(service("a", "h", 1, &[]), &["."]), entry("b", "h", 2, &[])],
            "z",
            Some(("b", 2)),
        ),
        ("nobody sees ~", vec![exported(entry("a", "h", 1, &[]), &["~"])], "a", None),
        ("own but hidden from own", vec![exported(service("a", "h", 1, &[]), &["b"])], "a", None),
    ] {
        let snapshot = services(all);
        let got = snapshot.service(client, "h").map(|s| (&*s.key.namespace, s.age.created));
        assert_eq!(got, wanted, "{what}");
        let listed: Vec<_> = snapshot.services_visible_to(client).iter().map(|s| s.age.created).collect();
        assert_eq!(listed, wanted.map(|w| w.1).into_iter().collect::<Vec<_>>(), "{what}: listed once");
    }
}

#[test]
fn aliases_are_followed_and_circles_dropped() {
    let alias = |from: &str, to: &str| {
        let mut s = service("a", from, 1, &[]);
        s.kind = ServiceKind::ExternalName(Host::new(to));
        s
    };
    let snapshot = services(vec![
        alias("one", "two"),
        alias("two", "real"),
        service("a", "real", 1, &[]),
        alias("x", "y"),
        alias("y", "x"),
        alias("out", "example.com"),
    ]);
    for (host, wanted) in [
        ("one", Some("real")),
        ("two", Some("real")),
        ("real", Some("real")),
        ("x", None),
        ("out", Some("example.com")),
    ] {
        assert_eq!(snapshot.resolve_alias("a", host), wanted.map(Host::new), "{host}");
    }
    let names: Vec<_> = snapshot.aliases_of("a", "real").iter().map(|s| s.host().to_string()).collect();
    assert_eq!(names, ["one", "two"]);
}

fn winner(snapshot: &MeshSnapshot, client: &ProxyView, host: &str, port: u16) -> Option<String> {
    let service = snapshot.service(&client.namespace, host).unwrap().clone();
    snapshot.virtual_service_for(client, &service, port).map(|(rule, _)| rule.key.name.to_string())
}

#[test]
fn which_virtual_service_holds() {
    let exported = |mut r: RouteRule, to: &[&str]| {
        r.export_to = ExportTo(to.iter().map(|t| Arc::from(*t)).collect());
        r
    };
    let only_from = |mut r: RouteRule, namespace: &str| {
        r.http[0].matches =
            vec![HttpMatch { source_namespace: Some(namespace.into()), ..HttpMatch::default() }];
        r
    };
    let gateway = GatewayRef::Named { namespace: "a".into(), name: "gw".into() };
    let on_gateway = |mut r: RouteRule, mesh: bool| {
        r.gateways = if mesh { vec![gateway.clone(), GatewayRef::Mesh] } else { vec![gateway.clone()] };
        r
    };
    let h = "web.a.svc.cluster.local";
    for (what, rules, client, wanted) in [
        ("none", vec![], "a", None),
        ("exact", vec![rule("a", "r", 1, &[h])], "a", Some("r")),
        ("oldest of two exact", vec![rule("a", "new", 2, &[h]), rule("a", "old", 1, &[h])], "a", Some("old")),
        ("tie by name", vec![rule("b", "b", 1, &[h]), rule("c", "a", 1, &[h])], "a", Some("a")),
        (
            "exact beats an older wildcard",
            vec![rule("a", "wild", 1, &["*.a.svc.cluster.local"]), rule("a", "r", 2, &[h])],
            "a",
            Some("r"),
        ),
        (
            "longest wildcard",
            vec![rule("a", "short", 1, &["*.local"]), rule("a", "long", 2, &["*.cluster.local"])],
            "a",
            Some("long"),
        ),
        (
            "wildcard tie: oldest",
            vec![rule("a", "new", 2, &["*.local"]), rule("a", "old", 1, &["*.local"])],
            "a",
            Some("old"),
        ),
        (
            "private goes before an older public one",
            vec![rule("b", "public", 1, &[h]), exported(rule("a", "private", 2, &[h]), &["."])],
            "a",
            Some("private"),
        ),
        (
            "by name goes before an older public one",
            vec![rule("b", "public", 1, &[h]), exported(rule("b", "named", 2, &[h]), &["a"])],
            "a",
            Some("named"),
        ),
        (
            "private goes before by name",
            vec![
                exported(rule("b", "named", 1, &[h]), &["a"]),
                exported(rule("a", "private", 2, &[h]), &["."]),
            ],
            "a",
            Some("private"),
        ),
        ("not exported to the client", vec![exported(rule("b", "r", 1, &[h]), &["."])], "a", None),
        ("gateway only", vec![on_gateway(rule("a", "r", 1, &[h]), false)], "a", None),
        ("gateway and mesh", vec![on_gateway(rule("a", "r", 1, &[h]), true)], "a", Some("r")),
        (
            "filtered out whole: the next one takes it",
            vec![only_from(rule("a", "r", 1, &[h]), "z"), rule("a", "s", 2, &[h])],
            "a",
            Some("s"),
        ),
        ("filtered out whole: default route", vec![only_from(rule("a", "r", 1, &[h]), "z")], "a", None),
        ("other host", vec![rule("a", "r", 1, &["other.a.svc.cluster.local"])], "a", None),
    ] {
        let services =
            vec![service("a", h, 1, &[(80, Protocol::Http), (81, Protocol::Auto), (82, Protocol::Tcp)])];
        let snapshot = Mesh { services, rules, policies: vec![] }.freeze();
        assert_eq!(winner(&snapshot, &view(client), h, 80).as_deref(), wanted, "{what}");
        assert_eq!(
            winner(&snapshot, &view(client), h, 81).as_deref(),
            wanted,
            "{what}: on every HTTP or auto port"
        );
        assert_eq!(winner(&snapshot, &view(client), h, 82), None, "{what}: TCP ports ignore the http block");
    }
}

#[test]
fn static_filters_of_http_matches() {
    let mut client = view("a");
    client.labels = Labels::from([("app", "web"), ("version", "v1")]);
    let base = HttpMatch::default;
    let gateway = GatewayRef::Named { namespace: "a".into(), name: "gw".into() };
    for (what, matched, wanted) in [
        ("empty", base(), true),
        ("port", HttpMatch { port: Some(80), ..base() }, true),
        ("other port", HttpMatch { port: Some(81), ..base() }, false),
        ("labels", HttpMatch { source_labels: Labels::from([("app", "web")]), ..base() }, true),
        ("other labels", HttpMatch { source_labels: Labels::from([("app", "db")]), ..base() }, false),
        ("namespace", HttpMatch { source_namespace: Some("a".into()), ..base() }, true),
        ("other namespace", HttpMatch { source_namespace: Some("b".into()), ..base() }, false),
        ("mesh", HttpMatch { gateways: vec![GatewayRef::Mesh], ..base() }, true),
        ("gateway", HttpMatch { gateways: vec![gateway], ..base() }, false),
        (
            "gateways switch source conditions off",
            HttpMatch { gateways: vec![GatewayRef::Mesh], source_namespace: Some("b".into()), ..base() },
            true,
        ),
        (
            "… but not the port",
            HttpMatch { gateways: vec![GatewayRef::Mesh], port: Some(81), ..base() },
            false,
        ),
    ] {
        assert_eq!(applies(&matched, &client, 80), wanted, "{what}");
    }
    let l4 = L4Match {
        gateways: vec![GatewayRef::Mesh],
        source_namespace: Some("b".into()),
        ..L4Match::default()
    };
    assert!(!l4_applies(&l4, &client, 80), "for TLS and TCP all conditions count");
}

#[test]
fn a_catch_all_ends_the_list() {
    let h = "web.a.svc.cluster.local";
    let on = |uri: Option<StringMatch>| HttpMatch { uri, ..HttpMatch::default() };
    let prefix = |p: &str| on(Some(StringMatch::Prefix(p.into())));
    let mut r = rule("a", "r", 1, &[h]);
    r.http = vec![
        HttpRoute { matches: vec![prefix("/a"), HttpMatch { port: Some(9), ..prefix("/") }], ..to("one") },
        HttpRoute { matches: vec![prefix("/b"), prefix("/"), prefix("/c")], ..to("two") },
        to("three"),
    ];
    let services = vec![service("a", h, 1, &[(80, Protocol::Http)])];
    let snapshot = Mesh { services, rules: vec![r], policies: vec![] }.freeze();
    let service = snapshot.service("a", h).unwrap();
    let (_, routes) = snapshot.virtual_service_for(&view("a"), service, 80).unwrap();
    let shape: Vec<_> = routes.iter().map(|r| r.matches.len()).collect();
    assert_eq!(shape, [1, 2], "the filtered catch-all ends nothing, the real one ends the list");
}

#[test]
fn hosts_that_are_no_services() {
    let rules = || {
        vec![
            rule("a", "plain", 1, &["example.com"]),
            rule("a", "second", 2, &["example.com", "other.com"]),
            rule("a", "both", 3, &["svc.a.svc.cluster.local", "extra.com"]),
            rule("a", "wild", 4, &["*.nowhere.com"]),
            rule("a", "wild-service", 5, &["*.svc.cluster.local"]),
            rule("a", "under-wild", 6, &["one.wild.com"]),
        ]
    };
    let services = || {
        vec![
            service("a", "svc.a.svc.cluster.local", 1, &[(80, Protocol::Http), (8080, Protocol::Http)]),
            entry("a", "*.wild.com", 1, &[(7070, Protocol::Http)]),
        ]
    };
    let snapshot = Mesh { services: services(), rules: rules(), policies: vec![] }.freeze();
    let names = |port| {
        let extra = snapshot.extra_hosts(&view("a"), port);
        extra.iter().map(|e| format!("{} {}", e.host, e.rule.key.name)).collect::<Vec<_>>()
    };
    assert_eq!(
        names(80),
        [
            "example.com plain",
            "other.com second",
            "extra.com both",
            "*.nowhere.com wild",
            "one.wild.com under-wild"
        ],
        "on 80 every host counts, first come first served"
    );
    assert_eq!(names(7070), ["one.wild.com under-wild"], "a wildcard service that covers the host counts");
    assert_eq!(names(8080), ["extra.com both"], "elsewhere the rule must name a service of that port");
    assert_eq!(names(9999), [""; 0]);
}

fn chosen(policies: Vec<DestinationPolicy>, client: &ProxyView) -> Option<String> {
    let services = vec![service("svc", "h.svc.svc.cluster.local", 1, &[(80, Protocol::Http)])];
    let snapshot = Mesh { services, rules: vec![], policies }.freeze();
    let service = snapshot
        .service_by_key(&ServiceKey { host: Host::new("h.svc.svc.cluster.local"), namespace: "svc".into() })
        .unwrap();
    snapshot.destination_policy(client, service).map(|p| p.key.name.to_string())
}

#[test]
fn which_destination_rule_holds() {
    let h = "h.svc.svc.cluster.local";
    let exported = |mut p: DestinationPolicy, to: &[&str]| {
        p.export_to = ExportTo(to.iter().map(|t| Arc::from(*t)).collect());
        p
    };
    let root = "istio-system";
    for (what, policies, client, wanted) in [
        ("none", vec![], "c", None),
        (
            "client namespace",
            vec![policy("c", "c", 9, h), policy("svc", "s", 1, h), policy(root, "r", 1, h)],
            "c",
            Some("c"),
        ),
        ("service namespace", vec![policy("svc", "s", 1, h), policy(root, "r", 1, h)], "c", Some("s")),
        ("root namespace", vec![policy(root, "r", 1, h)], "c", Some("r")),
        ("a third namespace never applies", vec![policy("third", "t", 1, h)], "c", None),
        (
            "exact before wildcard",
            vec![policy("svc", "w", 1, "*.local"), policy("svc", "e", 2, h)],
            "c",
            Some("e"),
        ),
        (
            "longest wildcard",
            vec![policy("svc", "w", 1, "*.local"), policy("svc", "l", 2, "*.cluster.local")],
            "c",
            Some("l"),
        ),
        (
            "a client's wildcard hides the exact one of the service",
            vec![policy("c", "w", 1, "*.local"), policy("svc", "e", 1, h)],
            "c",
            Some("w"),
        ),
        (
            "client's own, exported elsewhere only, is not used",
            vec![exported(policy("c", "c", 1, h), &["d"]), policy("svc", "s", 1, h)],
            "c",
            Some("s"),
        ),
        (
            "client's own exact one unseen: its wildcard is",
            vec![exported(policy("c", "e", 1, h), &["d"]), policy("c", "w", 1, "*.local")],
            "c",
            Some("w"),
        ),
        (
            "most specific of the service namespace is not exported: less specific ones are not tried",
            vec![exported(policy("svc", "e", 1, h), &["."]), policy("svc", "w", 1, "*.local")],
            "c",
            None,
        ),
        (
            "… but root is",
            vec![
                exported(policy("svc", "e", 1, h), &["."]),
                policy("svc", "w", 1, "*.local"),
                policy(root, "r", 1, h),
            ],
            "c",
            Some("r"),
        ),
        (
            "clients in root: public rules of root come last",
            vec![policy(root, "r", 1, h), policy("svc", "s", 1, h)],
            root,
            Some("s"),
        ),
        (
            "clients in root: private ones first",
            vec![exported(policy(root, "r", 1, h), &["."]), policy("svc", "s", 1, h)],
            root,
            Some("r"),
        ),
    ] {
        assert_eq!(chosen(policies, &view(client)).as_deref(), wanted, "{what}");
    }
}

#[test]
fn selectors_choose_clients() {
    let h = "h.svc.svc.cluster.local";
    let selecting = |mut p: DestinationPolicy, labels: Labels| {
        p.selector = Some(labels);
        p
    };
    let web = || Labels::from([("app", "web")]);
    let mut client = view("c");
    client.labels = Labels::from([("app", "web"), ("version", "v1")]);
    for (what, policies, wanted) in [
        (
            "matching selector before general",
            vec![policy("c", "g", 1, h), selecting(policy("c", "s", 2, h), web())],
            Some("s"),
        ),
        (
            "not matching: general",
            vec![policy("c", "g", 1, h), selecting(policy("c", "s", 2, h), Labels::from([("app", "db")]))],
            Some("g"),
        ),
        (
            "only all labels match",
            vec![selecting(policy("c", "s", 2, h), Labels::from([("app", "web"), ("x", "y")]))],
            None,
        ),
        ("always private", vec![selecting(policy("svc", "s", 1, h), web())], None),
    ] {
        assert_eq!(chosen(policies, &client).as_deref(), wanted, "{what}");
    }
}

#[test]
fn merging_of_destination_rules() {
    let h = "h.svc.svc.cluster.local";
    let with = |mut p: DestinationPolicy, subsets: &[(&str, &str)], lb: Option<LoadBalancer>| {
        p.subsets = subsets
            .iter()
            .map(|(name, version)| Subset {
                name: (*name).into(),
                labels: Labels::from([("version", *version)]),
                policy: None,
            })
            .collect();
        p.policy = lb.map(|lb| TrafficPolicy { load_balancer: Some(lb), ..TrafficPolicy::default() });
        p
    };
    let exported = |mut p: DestinationPolicy, to: &[&str]| {
        p.export_to = ExportTo(to.iter().map(|t| Arc::from(*t)).collect());
        p
    };
    let (rr, random) = (Some(LoadBalancer::RoundRobin), Some(LoadBalancer::Random));
    let get = |policies: Vec<DestinationPolicy>, client: &str| {
        let services = vec![service("svc", h, 1, &[(80, Protocol::Http)])];
        let snapshot = Mesh { services, rules: vec![], policies }.freeze();
        let service = snapshot.service("svc", h).unwrap();
        let found = snapshot.destination_policy(&view(client), service)?;
        let subsets: Vec<_> = found
            .subsets
            .iter()
            .map(|s| format!("{}={}", s.name, s.labels.get("version").unwrap()))
            .collect();
        Some((subsets.join(" "), found.policy.as_ref().and_then(|p| p.load_balancer)))
    };
    let a = || with(policy("svc", "a", 1, h), &[("v1", "1")], None);
    let b = || with(policy("svc", "b", 2, h), &[("v1", "x"), ("v2", "2")], rr);
    let c = || with(policy("svc", "c", 3, h), &[], random);
    assert_eq!(
        get(vec![c(), b(), a()], "z"),
        Some(("v1=1 v2=2".into(), rr)),
        "subsets are joined, the first policy wins whole"
    );
    assert_eq!(
        get(vec![exported(a(), &["."]), exported(b(), &["z"])], "z"),
        Some(("v1=x v2=2".into(), rr)),
        "different exportTo: kept apart"
    );
    let wider = || vec![exported(a(), &["svc"]), exported(b(), &["svc", "z"])];
    assert_eq!(
        get(wider(), "svc"),
        Some(("v1=1 v2=2".into(), rr)),
        "a proper superset is merged into the older one"
    );
    assert_eq!(get(wider(), "z"), Some(("v1=x v2=2".into(), rr)), "… and kept as well");
    assert_eq!(
        get(vec![with(policy("svc", "w", 0, "*.local"), &[("w", "w")], rr), a()], "z"),
        Some(("v1=1".into(), None))
    );
}

#[test]
fn original_destinations() {
    let mut vip = service("a", "vip.a", 1, &[(80, Protocol::Http)]);
    vip.addresses = vec!["10.0.0.1/32".parse().unwrap()];
    let mut same_vip = entry("b", "other.b", 2, &[(80, Protocol::Tcp), (81, Protocol::Tcp)]);
    same_vip.addresses = vec!["10.0.0.1/32".parse().unwrap()];
    let mut wide = entry("a", "wide.com", 1, &[(80, Protocol::Tcp)]);
    wide.addresses = vec!["10.0.0.0/8".parse().unwrap()];
    let mut narrow = entry("a", "narrow.com", 2, &[(80, Protocol::Tcp)]);
    narrow.addresses = vec!["10.1.0.0/16".parse().unwrap()];
    let mut headless = service("a", "headless.a", 1, &[(90, Protocol::Tcp)]);
    headless.kind = ServiceKind::Headless;
    let endpoint = Endpoint {
        address: Address::Ip("10.9.9.9".parse().unwrap()),
        port: 9090,
        health: Health::Healthy,
        labels: Labels::default(),
        locality: Locality::default(),
        network: "".into(),
        weight: 1,
        service_account: "".into(),
        workload: None,
        tls: TlsMode::Disabled,
        node: "".into(),
        hostname: "".into(),
    };
    let behind = ServiceEndpoints { ports: vec![PortEndpoints { port: 90, endpoints: [endpoint].into() }] };
    let endpoints = EndpointIndex::build([(headless.key.clone(), Arc::new(behind))]);
    let mut snapshot = services(vec![vip, same_vip, wide, narrow, headless]);
    snapshot.endpoints = Arc::new(endpoints);
    for (client, ip, port, wanted) in [
        ("a", "10.0.0.1", 80, "vip vip.a"),
        ("b", "10.0.0.1", 80, "vip other.b"),
        ("z", "10.0.0.1", 80, "vip vip.a"),
        ("z", "10.0.0.1", 81, "vip other.b"),
        ("z", "10.1.2.3", 80, "range narrow.com"),
        ("z", "10.2.2.3", 80, "range wide.com"),
        ("z", "10.2.2.3", 81, "unknown"),
        ("z", "10.9.9.9", 90, "headless headless.a"),
        ("z", "192.168.0.1", 80, "unknown"),
    ] {
        let got = match snapshot.resolve_original_destination(&view(client), ip.parse().unwrap(), port) {
            OriginalDestination::Vip { service, .. } => format!("vip {}", service.host()),
            OriginalDestination::Range { service, .. } => format!("range {}", service.host()),
            OriginalDestination::Headless { service, .. } => format!("headless {}", service.host()),
            OriginalDestination::Unknown => "unknown".into(),
        };
        assert_eq!(got, wanted, "{client} to {ip}:{port}");
    }
    let mut pod = view("a");
    pod.addresses = ["10.9.9.9".parse().unwrap()].into();
    let ports: Vec<_> =
        snapshot.inbound_ports(&pod).iter().map(|p| (p.port, p.protocol, p.services.len())).collect();
    assert_eq!(ports, [(9090, Protocol::Tcp, 1)]);
    pod.namespace = "b".into();
    assert!(snapshot.inbound_ports(&pod).is_empty(), "services of other namespaces open nothing");
}
