//! Descriptions of a mesh that is written as YAML and read by pilot's own code.

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use osier_pilot::source::folder::Folder;
use osier_pilot::store::Store;
use osier_pilot::store::writer::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::mesh::{View, judged_here};
use super::page::Page;
use super::{pod, refused, service};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: reviews}
  ports:
  - {name: http, port: 80, targetPort: 9080}
  - {port: 81, targetPort: 9080}
  - {name: x, port: 82, appProtocol: grpc, targetPort: 9082}
  - {name: dns, port: 82, protocol: UDP}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: reviews-1
  namespace: shop
  labels: {app: reviews, version: v1}
  annotations: {istio.io/rev: default}
spec:
  initContainers:
  - {name: istio-proxy, image: osier/proxy, restartPolicy: Always, ports: [{containerPort: 15090}]}
  containers:
  - {name: reviews, image: reviews, ports: [{containerPort: 9080, name: http}, {containerPort: 9082}]}
status:
  phase: Running
  podIP: 10.244.0.7
  podIPs: [{ip: 10.244.0.7}]
  conditions: [{type: Ready, status: 'True'}]
  initContainerStatuses: [{name: istio-proxy, ready: true, image: '', imageID: '', restartCount: 0}]
";

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - name: testers
    match: [{uri: {prefix: /api}, headers: {end-user: {exact: jason}}}, {method: {exact: PUT}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
";

/// A mesh of these documents.
fn view(documents: &[&str]) -> View {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("mesh.yaml"), documents.join("\n---\n")).expect("can be written");
    let mut store = Store::new("cluster.local".into());
    let scan = Folder::new(folder.path(), "cluster.local".into()).scan().expect("can be read");
    store.apply(scan.updates);
    let reports = scan.reports.into_iter().chain(store.reports()).collect();
    let judgement = judged_here(&Status { resources: store.statuses(), reports });
    View {
        snapshot: store.snapshot().clone(),
        remarks: judgement.remarks(),
        refused: refused::of(&judgement),
        connected: Some(vec!["reviews-1.shop".into()]),
    }
}

fn object<T: DeserializeOwned>(document: &str) -> T {
    let value: Value = serde_saphyr::from_str(document).expect("YAML");
    serde_json::from_value(value).expect("an object of this kind")
}

fn of_pod(view: &View, document: &str, services: &[&str]) -> String {
    let services: Vec<Service> = services.iter().map(|document| object(document)).collect();
    let mut page = Page::default();
    pod::describe(&mut page, view, &object::<Pod>(document), &services);
    page.to_string()
}

fn of_service(view: &View, document: &str) -> String {
    let mut page = Page::default();
    service::describe(&mut page, view, &object::<Service>(document), None);
    page.to_string()
}

#[test]
fn a_service_with_subsets_and_routes() {
    assert_eq!(
        of_service(&view(&[SERVICE, POD, RULES]), SERVICE),
        "\
Service: reviews.shop
   Port: http 80/HTTP targets pod port 9080 (by its name)
      1 ready endpoint
   Port: 81/unknown targets pod port 9080 (guessed for each connection)
      1 ready endpoint
   Port: x 82/GRPC targets pod port 9082 (by appProtocol grpc)
      1 ready endpoint
   Port: dns 82/UDP passes by the mesh
DestinationRule: reviews.shop for \"reviews.shop.svc.cluster.local\"
   Subsets, with their endpoints: v1 (1), v2 (0)
   Traffic policy: load balancer RoundRobin
VirtualService: reviews.shop
   HTTP route 1 testers: path /api* and header end-user = jason, or method = PUT
      to reviews.shop subset v2
   HTTP route 2: all requests
      90% to reviews.shop subset v1
      10% to reviews.shop subset v2
--------------------
Warning: port 81 of service reviews.shop doesn't say what is spoken there, so each connection is looked at: set appProtocol, or name it http, grpc, tcp, …
Warning: subset v2 of DestinationRule reviews.shop selects no endpoint
"
    );
}

#[test]
fn a_pod_knows_what_means_it() {
    let view = view(&[SERVICE, POD, RULES]);
    let text = of_pod(&view, POD, &[SERVICE]);
    assert!(
        text.starts_with(
            "\
Pod: reviews-1.shop
   Pod revision: default
   Pod ports: 9080 (reviews), 9082 (reviews), 15090 (istio-proxy)
--------------------
Service: reviews.shop
"
        ),
        "{text}"
    );
    for line in [
        "   Matching subsets: v1\n      (Non-matching subsets v2)\n",
        "      90% to reviews.shop subset v1 (this pod)\n      10% to reviews.shop subset v2\n",
        "Warning: pod port 9080 is http for reviews port 80, auto for reviews port 81: the oldest service decides, so it is taken as http\n",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    // A service that selects nothing, or others, has no say.
    let other = SERVICE.replace("app: reviews", "app: ratings");
    assert!(!of_pod(&view, POD, &[&other]).contains("Service:"));
}

#[test]
fn what_is_wrong_with_a_pod_is_said() {
    let plain = POD.replace("app: reviews, ", "").replace("{name: istio-proxy, ", "{name: other, ");
    let text = of_pod(&view(&[POD]), &plain, &[]);
    assert!(text.contains("Warning: pod reviews-1.shop has no sidecar"), "{text}");
    assert!(text.contains("has no label app"), "{text}");
    assert!(!text.contains("Pod revision"), "{text}");
    let starting = POD.replace("ready: true", "ready: false");
    assert!(of_pod(&view(&[POD]), &starting, &[]).contains("the sidecar of reviews-1.shop is not ready"));
    let alone = View { connected: Some(vec![]), ..view(&[POD]) };
    assert!(of_pod(&alone, POD, &[]).contains("is connected to no pilot"));
    let root = POD.replace("  containers:", "  securityContext: {runAsUser: 1337}\n  containers:");
    assert!(
        of_pod(&view(&[POD]), &root, &[]).contains("container reviews of reviews-1.shop runs as user 1337")
    );
    let ended = POD.replace("Running", "Succeeded");
    assert!(of_pod(&view(&[POD]), &ended, &[]).contains("does not run: it is Succeeded"));
}

#[test]
fn a_port_without_endpoints_has_a_reason() {
    let nobody = of_service(&view(&[SERVICE]), SERVICE);
    assert!(
        nobody.contains(
            "port 80 of service reviews.shop has no ready endpoint: no pod has the labels app=reviews"
        ),
        "{nobody}"
    );
    let unready = POD.replace("status: 'True'", "status: 'False'");
    let waiting = of_service(&view(&[SERVICE, &unready]), SERVICE);
    assert!(
        waiting.contains("port 80 of service reviews.shop has no ready endpoint: its pods are not ready"),
        "{waiting}"
    );
    let unknown = of_service(&view(&[POD]), SERVICE);
    assert!(unknown.contains("the mesh does not know service reviews.shop"), "{unknown}");
}

#[test]
fn what_is_refused_is_told_with_its_reason() {
    let broken = RULES.replace("weight: 90", "weight: -1");
    let mut view = view(&[SERVICE, POD, &broken]);
    let service: Service = object(SERVICE);
    let host = format!("{}.shop.svc.cluster.local", service.name_any());
    view.refused.iter_mut().for_each(|refused| refused.hosts = vec![osier_core::host::Host::new(&host)]);
    let text = of_service(&view, SERVICE);
    assert!(text.contains("VirtualService: reviews.shop is refused, and no version of it is in force\n   spec.http[1].route[0].weight"), "{text}");
    assert!(text.contains("Warning: VirtualService reviews.shop is refused"), "{text}");
    assert!(!text.contains("HTTP route"), "{text}");
}

#[test]
fn policies_of_a_pod_are_listed_in_the_order_in_which_they_are_asked() {
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let (allow, deny) = (policy("a", "rules: [{}]"), policy("b", "action: DENY, rules: [{}]"));
    let text = of_pod(&view(&[SERVICE, POD, &allow, &deny]), POD, &[SERVICE]);
    assert!(text.contains("AuthorizationPolicies:\n   b.shop (DENY)\n   a.shop (ALLOW)\n"), "{text}");
}

#[test]
fn a_policy_that_closes_a_pod_is_named() {
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: CUSTOM, rules: [{}]}
";
    let text = of_pod(&view(&[SERVICE, POD, policy]), POD, &[SERVICE]);
    assert!(
        text.contains("everything that reaches pod port 9080 is refused: AuthorizationPolicy shop/nobody"),
        "{text}"
    );
    assert!(text.contains("AuthorizationPolicy: nobody.shop can't be enforced"), "{text}");
}
