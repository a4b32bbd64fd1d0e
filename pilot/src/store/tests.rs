//! What is in force after a batch, what moved, and what is said about the rest.

use proptest::prelude::*;

use super::*;
use crate::model::{Interception, ProxyKind, ProxyView, ServiceKey};
use crate::source::object::{FirstSeen, Reader};
use crate::source::yaml::parse;
use osier_core::labels::Labels;

mod security;

struct NoAges;

impl FirstSeen for NoAges {
    fn first_seen(&mut self, _: &ResourceKey) -> i64 {
        1
    }
}

fn updates(yaml: &str) -> Vec<Update> {
    let domain = Arc::from("cluster.local");
    let mut reader =
        Reader { file: Some(Arc::new("mesh.yaml".into())), cluster_domain: &domain, ages: &mut NoAges };
    let documents = parse(yaml).unwrap().into_iter().flat_map(|node| reader.read(node));
    let known = documents.filter_map(|d| Some(Update { key: d.key?, outcome: d.outcome, place: d.place }));
    known.collect()
}

fn delete(yaml: &str) -> Vec<Update> {
    updates(yaml).into_iter().map(|u| Update { outcome: Outcome::Deleted, ..u }).collect()
}

fn store() -> Store {
    Store::new("cluster.local".into())
}

fn service(namespace: &str, name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}}}\n---\n"
    )
}

fn rule(name: &str, subset: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}}}, spec: {{hosts: [web], http: [{{route: [{{destination: {{host: web, subset: {subset}}}}}]}}]}}}}\n---\n"
    )
}

fn policy(name: &str, subsets: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {name}}}, spec: {{host: web, subsets: [{subsets}]}}}}\n---\n"
    )
}

fn pod(name: &str, ip: &str, app: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {app}}}}}, status: {{podIP: {ip}}}}}\n---\n"
    )
}

fn subset_in_force(store: &Store) -> Option<String> {
    let rule = store.snapshot().routes.iter().next()?.clone();
    let crate::model::HttpAction::Forward(to) = &rule.http[0].action else { return None };
    to[0].destination.subset.as_ref().map(|s| s.to_string())
}

fn said(store: &Store) -> Vec<String> {
    store.reports().iter().map(|r| format!("{:?} {r}", r.severity)).collect()
}

fn state(store: &Store, name: &str) -> State {
    store.statuses().into_iter().find(|s| &*s.key.name == name).unwrap().state
}

const V1: &str = "{name: v1, labels: {version: v1}}";
const BAD: &str = "{name: v 1}";

#[test]
fn a_pod_that_is_going_gets_nothing_new_and_keeps_what_it_serves() {
    use crate::model::{Health, Interception, ProxyKind, ProxyView};
    let slice = |conditions: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, \
             addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [10.0.0.1], conditions: {{{conditions}}}}}]}}"
        )
    };
    let mut store = store();
    let view = ProxyView {
        kind: ProxyKind::OnDemand,
        gateway: false,
        mutual_tls: false,
        namespace: "default".into(),
        name: "web-1".into(),
        labels: Default::default(),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        interception: Interception::Redirect,
        node: "".into(),
        dns_capture: false,
    };
    let serves = |store: &Store| store.snapshot().inbound_ports(&view).len();
    store.apply(updates(&[service("default", "web"), slice("ready: true")].concat()));
    assert_eq!(serves(&store), 1);
    let change = store.apply(updates(&slice("ready: false, serving: true, terminating: true"))).unwrap();
    assert!(change.endpoints_only());
    let service = store.snapshot().services.iter().next().unwrap().key.clone();
    assert_eq!(store.snapshot().endpoints(&service, 80).unwrap()[0].health, Health::Draining);
    assert_eq!(serves(&store), 1, "requests that are on their way are still served");
    store.apply(delete(&slice("")));
    assert_eq!(serves(&store), 0);
}

#[test]
fn the_last_good_version_stays() {
    let mut store = store();
    store.apply(updates(&[service("default", "web"), policy("p", V1), rule("r", "v1")].concat())).unwrap();
    assert_eq!(store.snapshot().policies.iter().count(), 1);
    assert_eq!(store.apply(updates(&policy("p", BAD))), None, "nothing moves");
    assert_eq!(store.snapshot().policies.iter().next().unwrap().subsets[0].name, "v1".into());
    assert_eq!(state(&store, "p"), State::LastGood);
    assert_eq!(subset_in_force(&store).as_deref(), Some("v1"));
    let change = store.apply(updates(&policy("p", "{name: v2}"))).unwrap();
    assert_eq!(change.rules.len(), 1);
    assert_eq!(state(&store, "p"), State::InForce);
    store.apply(delete(&policy("p", ""))).unwrap();
    assert_eq!(store.snapshot().policies.iter().count(), 0);
}

#[test]
fn rules_that_point_at_what_was_refused_are_held_back() {
    let mut store = store();
    store.apply(updates(&[service("default", "web"), policy("p", BAD), rule("r", "v1")].concat()));
    assert_eq!(subset_in_force(&store), None, "no route to a subset that only the refused rule defines");
    assert_eq!((state(&store, "p"), state(&store, "r")), (State::Refused, State::HeldBack));
    let said_now = said(&store);
    assert!(said_now.iter().any(|s| s.contains("VirtualService default/r: is held back: what it points at is defined by DestinationRule default/p only")), "{said_now:?}");
    assert!(
        said_now
            .iter()
            .any(|s| s.contains("DestinationRule default/p: VirtualService default/r is held back until")),
        "both are named: {said_now:?}"
    );
    let change = store.apply(updates(&policy("p", V1))).unwrap();
    assert_eq!(change.rules.len(), 2);
    assert_eq!(subset_in_force(&store).as_deref(), Some("v1"));
    assert_eq!(said(&store), [""; 0]);
    // a rule that wants more than the last good version has keeps its own last good version
    store.apply(updates(&[policy("p", BAD), rule("r", "v2")].concat()));
    assert_eq!(subset_in_force(&store).as_deref(), Some("v1"));
    assert_eq!((state(&store, "p"), state(&store, "r")), (State::LastGood, State::LastGood));
    assert!(said(&store).iter().any(|s| s.contains("its last good version stays in force")));
    // when the refused one is gone nothing is waited for
    store.apply(delete(&policy("p", "")));
    assert_eq!(subset_in_force(&store).as_deref(), Some("v2"));
    assert!(said(&store).iter().all(|s| s.starts_with("Warning")));
}

#[test]
fn a_refused_rule_that_can_not_be_read_blocks_its_namespace() {
    let mut store = store();
    let unreadable = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: p}, spec: {host: [web]}}";
    store.apply(updates(&[&service("default", "web"), unreadable, "\n---\n", &rule("r", "v1")].concat()));
    assert_eq!(state(&store, "r"), State::HeldBack);
}

#[test]
fn routes_to_a_refused_service_are_held_back() {
    let mut store = store();
    let bad = service("default", "web").replace("port: 80", "port: 0");
    let plain = rule("r", "v1").replace(", subset: v1", "");
    store.apply(updates(&[bad, plain].concat()));
    assert_eq!(state(&store, "r"), State::HeldBack);
    store.apply(updates(&service("default", "web")));
    assert_eq!(state(&store, "r"), State::InForce);
}

#[test]
fn references_to_nothing_are_warnings_with_their_line() {
    let mut store = store();
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nspec:\n  hosts: [web]\n  http:\n  - name: one\n    route:\n    - destination: {host: nowhere}\n  - route:\n    - destination: {host: web, subset: v9}\n  tcp:\n  - route:\n    - destination: {host: web, port: {number: 99}}\n";
    store.apply(updates(yaml));
    store.apply(updates(&service("default", "web")));
    assert_eq!(
        said(&store),
        [
            "Warning mesh.yaml:8: VirtualService default/r: spec.http[0].route: the host nowhere.default.svc.cluster.local is no service that default sees; requests to it get 503",
            "Warning mesh.yaml:10: VirtualService default/r: spec.http[1].route: no DestinationRule defines the subset v9 of web.default.svc.cluster.local; requests to it get 503",
            "Warning mesh.yaml:13: VirtualService default/r: spec.tcp[0].route: the service web.default.svc.cluster.local has no port 99; requests to it get 503",
        ]
    );
    assert_eq!(state(&store, "r"), State::InForce, "a warning keeps nothing back");
}

#[test]
fn endpoint_changes_replace_only_the_endpoint_index() {
    let mut store = store();
    store.apply(updates(
        &[
            service("default", "web"),
            service("default", "db"),
            policy("p", V1),
            rule("r", "v1"),
            pod("a", "10.0.0.1", "web"),
            pod("d", "10.0.0.9", "db"),
        ]
        .concat(),
    ));
    let before = store.snapshot().clone();
    let change = store.apply(updates(&pod("b", "10.0.0.2", "web"))).unwrap();
    let after = store.snapshot().clone();
    assert!(change.endpoints_only());
    let web = ServiceKey { host: Host::new("web.default.svc.cluster.local"), namespace: "default".into() };
    let db = ServiceKey { host: Host::new("db.default.svc.cluster.local"), namespace: "default".into() };
    assert_eq!((&change.endpoints, &change.identities), (&[web.clone()].into(), &[].into()));
    assert_eq!(
        change.addresses,
        ["10.0.0.2".parse().unwrap()].into(),
        "only the new one has new ports of its own"
    );
    assert!(Arc::ptr_eq(&before.services, &after.services) && Arc::ptr_eq(&before.routes, &after.routes));
    assert!(Arc::ptr_eq(&before.policies, &after.policies));
    assert!(Arc::ptr_eq(before.endpoints.get(&db).unwrap(), after.endpoints.get(&db).unwrap()));
    assert_eq!(after.version, before.version + 1);
    assert_eq!(store.apply(updates(&pod("b", "10.0.0.2", "web"))), None, "same content: no push");
    assert_eq!(store.snapshot().version, after.version);
    let of_another =
        pod("b", "10.0.0.2", "web").replace("kind: Pod", "kind: Pod, spec: {serviceAccountName: other}");
    let change = store.apply(updates(&of_another)).unwrap();
    assert_eq!(
        (change.endpoints, change.identities),
        ([web.clone()].into(), [web].into()),
        "another one answers"
    );
}

#[test]
fn who_a_change_concerns() {
    let view = |namespace: &str| ProxyView {
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
    };
    let mut store = store();
    let private = service("a", "web")
        .replace("metadata: {", "metadata: {annotations: {networking.istio.io/exportTo: '., b'}, ");
    let change = store.apply(updates(&private)).unwrap();
    for (namespace, wanted) in [("a", true), ("b", true), ("c", false)] {
        assert_eq!(change.concerns(&view(namespace)), wanted, "{namespace}");
    }
    let change = store.apply(updates(&service("a", "web"))).unwrap();
    assert!(change.concerns(&view("c")), "now it is public");
    let change = store.apply(updates(&private)).unwrap();
    assert!(change.concerns(&view("c")), "it was public");
    let mesh = "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}}";
    let change = store.apply(updates(mesh)).unwrap();
    assert!(change.mesh && change.concerns(&view("z")));
    assert_eq!(store.snapshot().mesh.outbound, crate::model::OutboundTraffic::RegistryOnly);
    let bad = mesh.replace("REGISTRY_ONLY", "NONSENSE");
    assert_eq!(store.apply(updates(&bad)), None);
    assert_eq!(store.snapshot().mesh.outbound, crate::model::OutboundTraffic::RegistryOnly, "last good");
    store.apply(delete(mesh)).unwrap();
    assert_eq!(*store.snapshot().mesh, MeshConfig::default());
}

#[test]
fn mesh_defaults_of_export_to() {
    let mut store = store();
    store.apply(updates(&[service("a", "web"), service("b", "web")].concat()));
    assert!(store.snapshot().service("c", "web.a.svc.cluster.local").is_some());
    let mesh = "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio}, data: {mesh: 'defaultServiceExportTo: [\".\"]'}}";
    store.apply(updates(mesh)).unwrap();
    assert!(store.snapshot().service("c", "web.a.svc.cluster.local").is_none());
    assert!(store.snapshot().service("a", "web.a.svc.cluster.local").is_some());
}

/// What a snapshot says, in a form that can be compared.
fn digest(store: &Store) -> String {
    let snapshot = store.snapshot();
    let mut lines: Vec<String> = Vec::new();
    for service in snapshot.services_visible_to("default") {
        let endpoints: Vec<_> =
            service.ports.iter().map(|p| snapshot.endpoints(&service.key, p.number)).collect();
        lines.push(format!("{service:?} {endpoints:?}"));
    }
    lines.extend(snapshot.routes.candidates("default").iter().map(|r| format!("{r:?}")));
    let mut policies: Vec<_> = snapshot.policies.iter().map(|p| format!("{p:?}")).collect();
    policies.sort();
    lines.extend(policies);
    // Without lines: in this test they depend on what was read together.
    lines.extend(
        store.reports().iter().map(|r| format!("{} {}/{}: {}", r.kind, r.namespace, r.name, r.message)),
    );
    lines.join("\n")
}

fn resources() -> Vec<String> {
    vec![
        service("default", "web"),
        service("default", "db"),
        policy("p", V1),
        policy("q", "{name: v2, labels: {version: v2}}"),
        rule("r", "v1"),
        rule("s", "v2"),
        pod("a", "10.0.0.1", "web"),
        pod("b", "10.0.0.2", "web"),
        pod("d", "10.0.0.3", "db"),
        policy("bad", BAD),
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e}, spec: {hosts: [a.com], resolution: STATIC, endpoints: [{address: 10.1.1.1}], ports: [{number: 80, name: http, protocol: HTTP}]}}".into(),
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: f}, spec: {hosts: [a.com], resolution: STATIC, endpoints: [{address: 10.1.1.2}], ports: [{number: 80, name: http, protocol: HTTP}]}}".into(),
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.3], targetRef: {kind: Pod, name: d}}]}".into(),
    ]
}

proptest! {
    /// Resources may come in any order and any batches, with deletions between: the end decides.
    #[test]
    fn order_does_not_matter(order in Just((0..resources().len()).collect::<Vec<_>>()).prop_shuffle(), cut in 0_usize..13, twice in 0_usize..13) {
        let all = resources();
        let mut straight = store();
        straight.apply(updates(&all.join("\n---\n")));
        let mut shuffled = store();
        for (at, index) in order.iter().enumerate() {
            shuffled.apply(updates(&all[*index]));
            if at == cut {
                shuffled.apply(delete(&all[order[twice.min(at)]]));
            }
        }
        shuffled.apply(updates(&all[order[twice.min(cut)]]));
        prop_assert_eq!(digest(&straight), digest(&shuffled));
    }

    /// Whatever services are added, nothing changes for hosts that they do not name.
    #[test]
    fn others_are_not_disturbed(names in prop::collection::vec("[a-c]", 1..4), ports in prop::collection::vec(80_u16..83, 1..3), protocol in prop_oneof![Just("HTTP"), Just("TCP"), Just("TLS")]) {
        let base = resources();
        let mut before = store();
        before.apply(updates(&base.join("\n---\n")));
        let mut after = store();
        after.apply(updates(&base.join("\n---\n")));
        for (at, name) in names.iter().enumerate() {
            let ports: BTreeSet<_> = ports.iter().collect();
            let ports: Vec<_> = ports.iter().map(|p| format!("{{number: {p}, name: p{p}, protocol: {protocol}}}")).collect();
            after.apply(updates(&format!("{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: x{at}, namespace: other}}, spec: {{hosts: [{name}.random.com], addresses: [10.200.0.{at}], ports: [{}]}}}}", ports.join(", "))));
        }
        let view = ProxyView { kind: ProxyKind::Envoy, gateway: false, mutual_tls: false, namespace: "default".into(), name: "".into(), labels: Labels::default(), addresses: ["10.0.0.1".parse().unwrap()].into(), interception: Interception::Redirect, dns_capture: false, node: "".into() };
        let (old, new) = (before.snapshot(), after.snapshot());
        for service in old.services_visible_to("default") {
            let now = new.service("default", service.host().as_str());
            prop_assert_eq!(now, Some(service));
            for port in &service.ports {
                prop_assert_eq!(new.virtual_service_for(&view, service, port.number), old.virtual_service_for(&view, service, port.number));
                prop_assert_eq!(new.endpoints(&service.key, port.number), old.endpoints(&service.key, port.number));
                prop_assert_eq!(new.effective_policy(&view, service, port.number, None), old.effective_policy(&view, service, port.number, None));
            }
        }
        prop_assert_eq!(new.inbound_ports(&view), old.inbound_ports(&view));
    }
}

mod writing {
    use std::time::Duration;

    use osier_core::registration::Registration;
    use tokio::time::timeout;

    use super::super::writer::{Parts, Registrations, Writer};
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn registration(name: &str, last: u8) -> Registration {
        Registration {
            name: name.into(),
            namespace: "default".into(),
            service: "web".into(),
            version: Some("v1".into()),
            labels: Default::default(),
            address: [127, 64, 0, last].into(),
            service_account: None,
            app_port: Some(8080),
        }
    }

    #[tokio::test]
    async fn registrations_are_endpoints_while_they_live() {
        let Parts { writer, feed, registrations, mut outputs, .. } = Writer::new("cluster.local".into());
        let task = tokio::spawn(writer.run());
        feed.send_and_wait(updates(&service("default", "web")), vec![]).await;
        let first = outputs.changes.recv().await.unwrap();
        assert_eq!(first.change.services.len(), 1);
        registrations.upsert(registration("web-1", 1));
        let second = timeout(LONG, outputs.changes.recv()).await.unwrap().unwrap();
        assert!(second.change.endpoints_only());
        let web =
            ServiceKey { host: Host::new("web.default.svc.cluster.local"), namespace: "default".into() };
        let endpoints = second.snapshot.endpoints(&web, 80).unwrap();
        assert_eq!(endpoints[0].address.to_string(), "127.64.0.1");
        assert_eq!(endpoints[0].labels.get("version"), Some("v1"));
        assert_eq!(&*endpoints[0].workload.as_ref().unwrap().workload, "web-v1");
        registrations.remove(Registrations::key(&registration("web-1", 1)));
        let third = timeout(LONG, outputs.changes.recv()).await.unwrap().unwrap();
        assert!(third.snapshot.endpoints(&web, 80).unwrap().is_empty());
        assert_eq!(outputs.snapshot.borrow().version, third.snapshot.version);
        drop((feed, registrations));
        timeout(LONG, task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_written_down_wins_over_a_registration() {
        let Parts { writer, feed, registrations, outputs, .. } = Writer::new("cluster.local".into());
        let task = tokio::spawn(writer.run());
        let entry = "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web-1}, spec: {address: 10.0.0.1, labels: {app: web}}}";
        feed.send_and_wait(updates(&[&service("default", "web"), entry].concat()), vec![]).await;
        registrations.upsert(registration("web-1", 1));
        registrations.remove(Registrations::key(&registration("web-1", 1)));
        feed.send_and_wait(vec![], vec![]).await;
        let snapshot = outputs.snapshot.borrow().clone();
        let web =
            ServiceKey { host: Host::new("web.default.svc.cluster.local"), namespace: "default".into() };
        assert_eq!(snapshot.endpoints(&web, 80).unwrap()[0].address.to_string(), "10.0.0.1");
        drop((feed, registrations));
        timeout(LONG, task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_burst_is_one_snapshot_and_status_is_published() {
        let Parts { writer, feed, registrations, mut outputs, .. } = Writer::new("cluster.local".into());
        for at in 0..100 {
            registrations.upsert(registration(&format!("web-{at}"), at));
        }
        let report = Report {
            file: None,
            line: 3,
            kind: "Service".into(),
            namespace: "default".into(),
            name: "x".into(),
            field: "spec".into(),
            message: "is odd".into(),
            severity: Severity::Error,
        };
        feed.send(updates(&service("default", "web")), vec![report.clone()]);
        drop((feed, registrations));
        writer.run().await;
        let only = outputs.changes.recv().await.unwrap();
        assert_eq!(only.change.endpoints.len(), 1);
        assert_eq!(outputs.changes.recv().await.map(|p| p.change), None, "one snapshot for the burst");
        let status = outputs.status.borrow().clone();
        assert_eq!(status.reports, [report]);
        assert_eq!(status.resources.len(), 101);
    }
}
