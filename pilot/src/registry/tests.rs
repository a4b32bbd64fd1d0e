//! Endpoints from each source, and that a change touches what it must and nothing else.

use super::*;
use crate::model::*;
use crate::source::yaml::parse;
use crate::store::Outcome;
use crate::store::check::Resource;

/// Feeds YAML documents through the reader of the folder source.
struct Fixture {
    registry: Registry,
}

struct NoAges;

impl crate::source::object::FirstSeen for NoAges {
    fn first_seen(&mut self, _: &ResourceKey) -> i64 {
        1
    }
}

fn events(yaml: &str) -> Vec<Event> {
    let mut ages = NoAges;
    let domain = Arc::from("cluster.local");
    let mut reader = crate::source::object::Reader {
        file: Some(Arc::new("t.yaml".into())),
        cluster_domain: &domain,
        ages: &mut ages,
    };
    let documents = parse(yaml).unwrap().into_iter().flat_map(|node| reader.read(node));
    let event = |d: crate::source::object::Document| {
        let key = d.key.clone().unwrap_or_else(|| panic!("{:?}", d.reports));
        match d.outcome {
            Outcome::Applied(Resource::Service(s)) => Event::Service(key, Some(s)),
            Outcome::Applied(Resource::Entry(e)) => Event::Entry(key, Some(e)),
            Outcome::Applied(Resource::Slice(s)) => Event::Slice(key, Some(s)),
            Outcome::Applied(Resource::Node(l)) => Event::Node(key.name, Some(l)),
            Outcome::Applied(Resource::Workload(w)) => Event::Workload(key, Some(Arc::new(*w))),
            other => panic!("{other:?} {:?}", d.reports),
        }
    };
    documents.map(event).collect()
}

fn deleted(event: &Event) -> Event {
    match event {
        Event::Service(key, _) => Event::Service(key.clone(), None),
        Event::Entry(key, _) => Event::Entry(key.clone(), None),
        Event::Slice(key, _) => Event::Slice(key.clone(), None),
        Event::Workload(key, _) => Event::Workload(key.clone(), None),
        Event::Node(name, _) => Event::Node(name.clone(), None),
    }
}

impl Fixture {
    fn new() -> Self {
        Self { registry: Registry::new("cluster.local".into()) }
    }

    fn apply(&mut self, yaml: &str) -> Effects {
        for event in events(yaml) {
            self.registry.apply(event);
        }
        self.registry.settle()
    }

    fn delete(&mut self, yaml: &str) -> Effects {
        for event in events(yaml) {
            self.registry.apply(deleted(&event));
        }
        self.registry.settle()
    }

    /// `address:port` of each endpoint of a service port, with a mark for health.
    fn endpoints(&self, host: &str, port: u16) -> Vec<String> {
        let key = ServiceKey { host: Host::new(host), namespace: "default".into() };
        let mark = |e: &Endpoint| match e.health {
            Health::Healthy => "",
            Health::Unhealthy => " unhealthy",
            Health::Draining => " draining",
        };
        let found = self.registry.endpoints.get(&key).and_then(|e| e.port(port));
        found
            .map(|e| e.iter().map(|e| format!("{}:{}{}", e.address, e.port, mark(e))).collect())
            .unwrap_or_default()
    }
}

const WEB: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: adm}]}}";

fn pod(name: &str, ip: &str, labels: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{{labels}}}}}, spec: {{containers: [{{ports: [{{name: adm, containerPort: 9000}}]}}]}}, status: {{podIP: {ip}}}}}"
    )
}

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{endpoints}]}}"
    )
}

#[test]
fn pods_by_selector_where_there_are_no_slices() {
    let mut f = Fixture::new();
    f.apply(&[WEB, &pod("a", "10.0.0.1", "app: web"), &pod("b", "10.0.0.2", "app: other")].join("\n---\n"));
    let web = "web.default.svc.cluster.local";
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"]);
    assert_eq!(f.endpoints(web, 81), ["10.0.0.1:9000"], "the named port of the container");
    let effects = f.apply(&pod("b", "10.0.0.2", "app: web"));
    assert_eq!(effects.endpoints.len(), 1);
    assert!(effects.services.is_empty(), "an endpoint change is nothing else");
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(f.apply(&pod("b", "10.0.0.2", "app: web")), Effects::default(), "same content: no effect");
    f.apply(&pod("b", "10.0.0.2", "app: gone"));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"], "labels moved away");
    f.delete(&pod("a", "10.0.0.1", "app: web"));
    assert_eq!(f.endpoints(web, 80), [""; 0]);
}

#[test]
fn slices_win_over_selected_pods_and_get_labels_from_them() {
    let mut f = Fixture::new();
    f.apply(
        &[WEB, &pod("a", "10.0.0.1", "app: web, version: v1"), &pod("b", "10.0.0.2", "app: web")]
            .join("\n---\n"),
    );
    let web = "web.default.svc.cluster.local";
    let a = "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}, zone: z1}";
    f.apply(&slice("s1", a));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"], "only what the slice says");
    assert_eq!(f.endpoints(web, 81), [""; 0], "the slice has no port of this name");
    let key = ServiceKey { host: Host::new(web), namespace: "default".into() };
    let endpoint = f.registry.endpoints[&key].port(80).unwrap()[0].clone();
    assert_eq!(endpoint.labels.get("version"), Some("v1"));
    assert_eq!(&*endpoint.locality.zone, "z1");
    // several slices are merged, duplicates collapse
    f.apply(&slice("s2", &format!("{a}, {{addresses: [10.0.0.9], conditions: {{ready: false}}}}")));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080", "10.0.0.9:8080 unhealthy"]);
    // a Pod that moves changes its slice's endpoints
    let effects = f.apply(&pod("a", "10.0.0.1", "app: web, version: v2"));
    assert_eq!(effects.endpoints.len(), 1);
    f.apply(&pod("a", "10.0.0.1", "app: web, istio.io/draining: 'true'"));
    assert_eq!(f.endpoints(web, 80)[0], "10.0.0.1:8080 draining");
    f.delete(&slice("s1", a));
    assert_eq!(f.endpoints(web, 80).len(), 2, "the other slice still says so");
    f.delete(&slice("s2", ""));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080 draining", "10.0.0.2:8080"], "back to the selector");
}

#[test]
fn an_endpoint_waits_for_its_pod_where_it_will_come() {
    let mut f = Fixture::new();
    f.registry.wait_for_pods();
    let web = "web.default.svc.cluster.local";
    f.apply(
        &[
            WEB,
            &slice("s1", "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}}, {addresses: [10.0.0.9]}"),
        ]
        .join("\n---\n"),
    );
    assert_eq!(f.endpoints(web, 80), ["10.0.0.9:8080"], "what has no Pod is not held back");
    f.apply(&pod("a", "10.0.0.1", "app: web"));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080", "10.0.0.9:8080"]);
}

#[test]
fn a_node_says_where_its_pods_are() {
    let mut f = Fixture::new();
    let web = "web.default.svc.cluster.local";
    f.apply(&[WEB, &slice("s1", "{addresses: [10.0.0.9], nodeName: n1, zone: of-slice}")].join("\n---\n"));
    let key = ServiceKey { host: Host::new(web), namespace: "default".into() };
    let locality = |f: &Fixture| {
        let locality = f.registry.endpoints[&key].port(80).unwrap()[0].locality.clone();
        format!("{}/{}/{}", locality.region, locality.zone, locality.subzone)
    };
    assert_eq!(locality(&f), "/of-slice/");
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels:\n    topology.kubernetes.io/region: r1\n    \
        topology.kubernetes.io/zone: z1\n    topology.istio.io/subzone: s1";
    f.apply(node);
    assert_eq!(locality(&f), "r1/z1/s1");
    assert_eq!(f.apply(node), Effects::default());
    f.delete(node);
    assert_eq!(locality(&f), "/of-slice/");
}

#[test]
fn slices_before_their_service_and_pod() {
    let mut f = Fixture::new();
    let web = "web.default.svc.cluster.local";
    f.apply(&slice("s1", "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}}"));
    f.apply(WEB);
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"], "a Pod that is not there is not waited for");
    f.apply(&pod("a", "10.0.0.1", "app: web, version: v1"));
    let key = ServiceKey { host: Host::new(web), namespace: "default".into() };
    assert_eq!(f.registry.endpoints[&key].port(80).unwrap()[0].labels.get("version"), Some("v1"));
    let gone = f.delete(WEB);
    assert_eq!(gone.endpoints.get(&key), Some(&None));
    f.apply(WEB);
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"]);
}

#[test]
fn workload_entries_join_kubernetes_services() {
    let mut f = Fixture::new();
    let web = "web.default.svc.cluster.local";
    let entry = |ports: &str, namespace: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: vm, namespace: {namespace}}}, spec: {{address: 10.1.0.1, labels: {{app: web}}{ports}}}}}"
        )
    };
    f.apply(&[WEB, &entry("", "default"), &slice("s1", "{addresses: [10.0.0.1]}")].join("\n---\n"));
    assert_eq!(
        f.endpoints(web, 80),
        ["10.0.0.1:8080", "10.1.0.1:8080"],
        "beside slices too; port is the target port"
    );
    f.apply(&entry(", ports: {http: 7000}", "default"));
    assert_eq!(
        f.endpoints(web, 80),
        ["10.0.0.1:8080", "10.1.0.1:7000"],
        "its own port by the service port's name"
    );
    f.delete(&entry("", "default"));
    f.apply(&entry("", "other"));
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"], "selectors stay in their namespace");
    let named = "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: dns}, spec: {address: vm.example.com, labels: {app: web}}}";
    f.apply(named);
    assert_eq!(f.endpoints(web, 80), ["10.0.0.1:8080"], "names are for DNS services only");
}

#[test]
fn service_entries() {
    let mut f = Fixture::new();
    let entry = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1beta1, kind: ServiceEntry, metadata: {{name: {name}}}, spec: {{hosts: [a.com], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], {spec}}}}}"
        )
    };
    f.apply(&entry(
        "one",
        "resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {http: 9}}, {address: 'unix:///s'}]",
    ));
    assert_eq!(f.endpoints("a.com", 80), ["10.0.0.1:9", "unix:///s:0"]);
    f.apply(&entry("two", "resolution: STATIC, endpoints: [{address: 10.0.0.2}]"));
    assert_eq!(
        f.endpoints("a.com", 80),
        ["10.0.0.1:9", "10.0.0.2:8080", "unix:///s:0"],
        "endpoints of all entries merge"
    );
    f.delete(&entry("one", ""));
    assert_eq!(f.endpoints("a.com", 80), ["10.0.0.2:8080"]);
    f.apply(&entry("two", "resolution: DNS"));
    assert_eq!(f.endpoints("a.com", 80), ["a.com:8080"], "without endpoints the host itself is looked up");
    f.apply(&entry("two", "resolution: DNS, endpoints: [{address: b.com}, {address: 10.0.0.3}]"));
    assert_eq!(f.endpoints("a.com", 80), ["10.0.0.3:8080", "b.com:8080"]);
    f.apply(&entry("two", "resolution: NONE"));
    assert_eq!(f.endpoints("a.com", 80), [""; 0]);
    f.apply(&entry("two", "resolution: STATIC, workloadSelector: {labels: {app: web}}"));
    f.apply(&pod("a", "10.0.0.4", "app: web"));
    assert_eq!(f.endpoints("a.com", 80), ["10.0.0.4:8080"], "Pods are selected");
    f.apply("{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm}, spec: {address: 10.0.0.5, labels: {app: web}, ports: {http: 5}, weight: 3}}");
    assert_eq!(f.endpoints("a.com", 80), ["10.0.0.4:8080", "10.0.0.5:5"], "WorkloadEntries as well");
}

#[test]
fn a_selector_without_labels() {
    let mut f = Fixture::new();
    f.apply(&pod("a", "10.0.0.1", "app: web"));
    f.apply("{apiVersion: v1, kind: Service, metadata: {name: manual}, spec: {ports: [{port: 80}]}}");
    assert_eq!(
        f.endpoints("manual.default.svc.cluster.local", 80),
        [""; 0],
        "a Service without selector selects nothing"
    );
    f.apply("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: all}, spec: {hosts: [all.com], resolution: STATIC, workloadSelector: {}, ports: [{number: 80, name: http, protocol: HTTP}]}}");
    assert_eq!(f.endpoints("all.com", 80), ["10.0.0.1:80"], "an entry with an empty one selects everything");
    f.apply(&pod("b", "10.0.0.2", ""));
    assert_eq!(f.endpoints("all.com", 80), ["10.0.0.1:80", "10.0.0.2:80"]);
}

#[test]
fn publish_not_ready_addresses() {
    let mut f = Fixture::new();
    let unready = "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: db}}, status: {podIP: 10.0.0.1, phase: Pending}}";
    f.apply(unready);
    f.apply("{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: db}, ports: [{port: 80}]}}");
    f.apply("{apiVersion: v1, kind: Service, metadata: {name: db2}, spec: {selector: {app: db}, ports: [{port: 80}]}}");
    assert_eq!(f.endpoints("db.default.svc.cluster.local", 80), ["10.0.0.1:80"]);
    assert_eq!(f.endpoints("db2.default.svc.cluster.local", 80), ["10.0.0.1:80 unhealthy"]);
}
