//! Real files in real folders: reload, broken files, wrong fields with their exact message, swaps and renames.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::model::{Kind, Severity};
use crate::snapshot::MeshSnapshot;
use crate::source::watch::{Follower, Timing};
use crate::store::Store;
use crate::store::writer::{Parts, Writer};

struct Fixture {
    dir: TempDir,
    folder: Folder,
    store: Store,
    reports: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), "cluster.local".into());
        Self { dir, folder, store: Store::new("cluster.local".into()), reports: vec![] }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Scans and applies; returns how many updates there were.
    fn scan(&mut self) -> usize {
        let scan = self.folder.scan().unwrap();
        let count = scan.updates.len();
        self.store.apply(scan.updates);
        let all = scan.reports.into_iter().chain(self.store.reports());
        self.reports = all.filter(|r| r.severity != Severity::Notice).map(|r| r.to_string()).collect();
        count
    }

    fn hosts(&self) -> Vec<String> {
        self.store.snapshot().services_visible_to("default").iter().map(|s| s.host().to_string()).collect()
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - name: http\n    port: 80\n"
    )
}

const A: &str = "a.default.svc.cluster.local";
const B: &str = "b.default.svc.cluster.local";

#[test]
fn documents_lists_and_kinds_that_are_left_out() {
    let mut f = Fixture::new();
    f.write("one.yaml", &format!("{}---\n{}", service("a"), service("b")));
    f.write("sub/list.yml", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: c}\n  spec: {ports: [{port: 80}]}\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: c}\n");
    f.write("three.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "d"}, "spec": {"ports": [{"port": 80}]}}"#);
    f.write("notes.txt", "not: [yaml");
    f.write(".hidden.yaml", "not: [yaml");
    f.write("empty.yaml", "");
    f.write("comment.yaml", "# nothing\n---\n");
    assert_eq!(f.scan(), 4);
    assert_eq!(f.hosts().len(), 4);
    assert_eq!(f.reports, [""; 0]);
    let notices = f.folder.scan().unwrap().reports;
    let texts: Vec<_> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["sub/list.yml:8: Deployment default/c: is left out: a Deployment means nothing here"]);
}

#[test]
fn only_what_changed_is_an_update() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a"));
    f.write("b.yaml", &service("b"));
    assert_eq!(f.scan(), 2);
    assert_eq!(f.scan(), 0);
    f.write("b.yaml", &service("b").replace("80", "81"));
    assert_eq!(f.scan(), 1);
    f.write("b.yaml", &service("b").replace("80", "82"));
    assert_eq!(f.scan(), 1, "same size, written right after the last look");
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    assert_eq!(f.scan(), 1);
    assert_eq!(f.hosts(), [B]);
}

#[test]
fn a_document_that_lost_its_identity_takes_nothing_with_it() {
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: r\nspec:\n  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n";
    let mut f = Fixture::new();
    let whole = format!("{}---\n{rule}---\n{}", service("a"), service("b"));
    f.write("a.yaml", &whole);
    f.scan();
    for (part, broken, wanted) in [
        ("  name: a\n", "  nam: a\n", "a.yaml:4: Service: metadata.name: is required"),
        ("kind: Service\n", "", "a.yaml:1: kind: is required"),
        (
            "kind: VirtualService",
            "kind: VirtualServic",
            "a.yaml:10: VirtualServic default/r: there is no kind VirtualServic, did you mean VirtualService?",
        ),
        (
            &whole[whole.find("  name: r").unwrap()..],
            "",
            "a.yaml:12: VirtualService: metadata.name: is required",
        ),
    ] {
        f.write("a.yaml", &whole.replacen(part, broken, 1));
        f.scan();
        let rules = f.store.snapshot().routes.iter().count();
        assert_eq!((f.hosts(), rules), (vec![A.to_owned(), B.to_owned()], 1), "{broken:?}");
        assert_eq!(
            f.reports,
            [format!("{wanted}; what this file said before and doesn't say now stays in force")]
        );
    }
    // What is removed while all is well goes, also what had been kept.
    f.write("a.yaml", &service("a"));
    f.scan();
    assert_eq!((f.hosts(), f.reports.len()), (vec![A.to_owned()], 0));
}

#[test]
fn a_broken_file_keeps_its_last_good_resources() {
    let mut f = Fixture::new();
    f.write("a.yaml", &format!("{}---\n{}", service("a"), service("b")));
    f.scan();
    f.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec:\n");
    assert_eq!(f.scan(), 0);
    assert_eq!(f.hosts(), [A, B]);
    assert_eq!(f.reports.len(), 1);
    assert!(f.reports[0].starts_with("a.yaml:"), "{:?}", f.reports);
    assert!(f.reports[0].contains("is no YAML: "), "{:?}", f.reports);
    assert!(
        f.reports[0].ends_with("; the last good version of its resources stays in force"),
        "{:?}",
        f.reports
    );
    f.write("a.yaml", &service("a"));
    f.scan();
    assert_eq!((f.hosts(), f.reports.len()), (vec![A.to_owned()], 0));
    fs::write(f.dir.path().join("a.yaml"), b"\xff\xfe").unwrap();
    f.scan();
    assert_eq!(
        f.reports,
        ["a.yaml: is no UTF-8 text; the last good version of its resources stays in force"]
    );
    assert_eq!(f.hosts(), [A]);
}

#[test]
fn wrong_fields_are_named_with_file_line_and_path() {
    let rule = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: r\n  namespace: prod\nspec:\n{spec}"
        )
    };
    for (yaml, wanted) in [
        (
            rule("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n    timeuot: 5s\n"),
            "x.yaml:11: VirtualService prod/r: spec.http[0].timeuot: unknown field, did you mean timeout?",
        ),
        (
            rule("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n    timeout: 5\n"),
            "x.yaml:11: VirtualService prod/r: spec.http[0].timeout: must be text, not the number 5; put it in quotes",
        ),
        (
            rule("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n      weight: many\n"),
            "x.yaml:11: VirtualService prod/r: spec.http[0].route[0].weight: must be a whole number, not the text \"many\"",
        ),
        (
            rule("  hosts: [a]\n  http:\n  - fault:\n      delay: {fixedDelay: 1s}\n    route:\n    - destination: {host: a}\n"),
            "x.yaml:9: VirtualService prod/r: spec.http[0].fault: is not supported yet",
        ),
        (
            rule("  hosts: [a]\n  http:\n  - retries: {attempts: 2, retryOn: nonsense}\n    route:\n    - destination: {host: a}\n"),
            "x.yaml:9: VirtualService prod/r: spec.http[0].retries.retryOn: \"nonsense\" is no retry condition",
        ),
        (rule("  hosts: [a]\n  hosts: [b]\n"), "x.yaml:8: VirtualService prod/r: spec.hosts: is there twice"),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nsepc: {}\n".into(),
            "x.yaml:4: VirtualService default/r: sepc: unknown field, did you mean spec?",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: p}\nspec:\n  host: a\n  trafficPolicy:\n    outlierDetection: {}\n".into(),
            "x.yaml:7: DestinationRule default/p: spec.trafficPolicy.outlierDetection: is not supported yet",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 99999\n".into(),
            "x.yaml:6: Service default/s: spec.ports[0].port: 99999 is no port number (1 to 65535)",
        ),
        ("kind: Service\nmetadata: {name: s}\n".into(), "x.yaml:1: Service s: apiVersion: is required"),
        ("apiVersion: v1\nmetadata: {name: s}\n".into(), "x.yaml:1: kind: is required"),
        ("apiVersion: v1\nkind: Service\nspec: {}\n".into(), "x.yaml:1: Service: metadata.name: is required"),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: A_b\n".into(),
            "x.yaml:4: Service A_b: metadata.name: \"A_b\" is no name: lower-case letters, digits and hyphens",
        ),
        ("- a\n".into(), "x.yaml:1: a resource must be a mapping, not a list"),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n".into(),
            "x.yaml:1: Gateway default/g: the kind Gateway of networking.istio.io is not supported yet and not applied",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    accessLogFile: /dev/stdout\n    defaultConfig:\n      concurency: 1\n".into(),
            "x.yaml:8: ConfigMap istio-system/istio: data.mesh.defaultConfig.concurency: unknown field, did you mean concurrency?",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    enableTracing: true\n".into(),
            "x.yaml:6: ConfigMap istio-system/istio: data.mesh.enableTracing: is not applied: there is no tracing yet",
        ),
    ] {
        let mut f = Fixture::new();
        f.write("x.yaml", &yaml);
        f.scan();
        assert_eq!(f.reports, [wanted], "{yaml}");
    }
}

#[test]
fn a_security_policy_that_cannot_be_read_says_what_is_refused() {
    let mut f = Fixture::new();
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n";
    f.write("a.yaml", &format!("{policy}  selectr: {{}}\n"));
    f.scan();
    let all = "everything that is sent to workloads of its namespace is refused";
    assert_eq!(
        f.reports,
        [
            "a.yaml:5: AuthorizationPolicy default/p: spec.selectr: unknown field, did you mean selector?"
                .into(),
            format!("a.yaml:1: AuthorizationPolicy default/p: can't be read: {all}"),
        ]
    );
    f.write("a.yaml", &format!("{policy}  action: AUDIT\n"));
    f.write("b.yaml", &format!("{policy}  action: AUDIT\n"));
    f.scan();
    assert_eq!(
        f.reports[0],
        format!(
            "b.yaml:1: AuthorizationPolicy default/p: metadata.name: is defined in a.yaml:1 already: {all}"
        )
    );
    let closed = |f: &Fixture| {
        f.store.snapshot().refusal(&crate::r#gen::key::tests::view("default", []).proxy, 80).is_some()
    };
    assert!(closed(&f));
    fs::remove_file(f.dir.path().join("b.yaml")).unwrap();
    f.scan();
    assert!(!closed(&f));
}

/// A slip in the first lines must not open what a policy protects.
#[test]
fn a_policy_whose_group_or_kind_is_mistyped_opens_nothing() {
    let deny = |version: &str, kind: &str| {
        format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
        )
    };
    let (version, kind) = ("security.istio.io/v1", "AuthorizationPolicy");
    for (wrong, holds) in [
        (deny("security.istio.ioo/v1", kind), true),
        (deny("Security.istio.io/v1", kind), true),
        (deny("networking.istio.io/v1", kind), true),
        (deny("istio.io/v1", kind), true),
        (deny("security.istio.io", kind), true),
        (deny("v1", kind), true),
        (deny(version, "Authorization"), true),
        (deny(version, "AuthorisationPolicy"), true),
        // Another project's has nothing to do with it.
        (deny("policy.linkerd.io/v1beta1", kind), false),
    ] {
        let mut f = Fixture::new();
        f.write("a.yaml", &deny(version, kind));
        f.scan();
        assert!(f.reports.is_empty());
        f.write("a.yaml", &wrong);
        f.scan();
        let proxy = crate::r#gen::key::tests::view("default", []).proxy;
        let snapshot = f.store.snapshot();
        let denies = snapshot.refusal(&proxy, 80).is_some() || !snapshot.authorizations(&proxy).is_empty();
        assert_eq!((denies, !f.reports.is_empty()), (holds, holds), "{wrong}{:?}", f.reports);
    }
}

#[test]
fn a_link_that_leads_nowhere_is_a_file_that_can_not_be_read() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a"));
    f.scan();
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    symlink("/nonexistent", f.dir.path().join("a.yaml")).unwrap();
    f.scan();
    assert_eq!(f.hosts(), [A]);
    assert!(f.reports[0].starts_with("a.yaml: can't be read: No such file"), "{:?}", f.reports);
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    f.scan();
    assert!(f.hosts().is_empty() && f.reports.is_empty());
}

#[test]
fn a_bad_resource_does_not_hold_up_its_neighbours() {
    let mut f = Fixture::new();
    f.write(
        "x.yaml",
        &format!("{}---\n{}---\n{}", service("a"), service("bad").replace("80", "0"), service("b")),
    );
    f.scan();
    assert_eq!(f.hosts(), [A, B]);
    assert_eq!(f.reports.len(), 1);
    // a good one that turns bad stays as it was, while its neighbour changes
    f.write(
        "x.yaml",
        &format!("{}---\n{}", service("a").replace("80", "0"), service("b").replace("80", "81")),
    );
    f.scan();
    let port = |f: &Fixture, host: &str| f.store.snapshot().service("default", host).unwrap().ports[0].number;
    assert_eq!((port(&f, A), port(&f, B)), (80, 81));
}

#[test]
fn thirty_bad_among_thirty_good() {
    let mut f = Fixture::new();
    for at in 0..30 {
        f.write(&format!("good-{at}.yaml"), &service(&format!("good{at}")));
        f.write(&format!("bad-{at}.yaml"), &service(&format!("bad{at}")).replace("80", "eighty"));
    }
    f.scan();
    assert_eq!(f.hosts().len(), 30);
    assert_eq!(f.reports.len(), 30);
    assert!(
        f.reports.iter().all(|r| r.contains("spec.ports[0].port: must be a whole number")),
        "{:?}",
        f.reports
    );
}

#[test]
fn the_first_of_two_with_one_name_holds() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a"));
    f.write("b.yaml", &format!("{}---\n{}", service("b"), service("a").replace("80", "90")));
    f.scan();
    let port = |f: &Fixture| f.store.snapshot().service("default", A).unwrap().ports[0].number;
    assert_eq!(port(&f), 80);
    assert_eq!(
        f.reports,
        [
            "b.yaml:10: Service default/a: metadata.name: is defined in a.yaml:1 already; this one is not applied"
        ]
    );
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    f.scan();
    assert_eq!((port(&f), f.reports.len()), (90, 0), "when the first goes, the second holds");
}

#[test]
fn an_emptied_file_is_believed_the_second_time() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a"));
    f.scan();
    f.write("a.yaml", "");
    assert!(f.folder.scan().unwrap().again, "somebody may be writing it right now");
    f.write("a.yaml", &service("a").replace("80", "81"));
    assert_eq!(f.scan(), 1);
    f.write("a.yaml", "");
    f.scan();
    assert_eq!(f.hosts(), [A]);
    f.scan();
    assert_eq!(f.hosts(), [""; 0]);
}

#[test]
fn links_are_followed_and_swapped() {
    let mut f = Fixture::new();
    // as a ConfigMap is mounted: x.yaml -> ..data/x.yaml, ..data -> ..1
    f.write("..1/x.yaml", &service("a"));
    f.write("..2/x.yaml", &service("b"));
    symlink("..1", f.dir.path().join("..data")).unwrap();
    symlink("..data/x.yaml", f.dir.path().join("x.yaml")).unwrap();
    symlink("nowhere.yaml", f.dir.path().join("dangling.yaml")).unwrap();
    symlink(".", f.dir.path().join("loop")).unwrap();
    f.scan();
    assert_eq!(f.hosts(), [A], "each file once, hidden folders not");
    symlink("..2", f.dir.path().join("..tmp")).unwrap();
    fs::rename(f.dir.path().join("..tmp"), f.dir.path().join("..data")).unwrap();
    f.scan();
    assert_eq!(f.hosts(), [B]);
    fs::remove_dir_all(f.dir.path().join("..2")).unwrap();
    f.scan();
    assert_eq!(f.hosts(), [B], "what a link led to stays until the link goes, too");
    fs::remove_file(f.dir.path().join("x.yaml")).unwrap();
    f.scan();
    assert_eq!(f.hosts(), [""; 0]);
}

#[test]
fn a_folder_that_is_gone_changes_nothing() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a"));
    f.scan();
    fs::rename(f.dir.path(), f.dir.path().with_extension("away")).unwrap();
    assert!(f.folder.scan().is_err());
    fs::rename(f.dir.path().with_extension("away"), f.dir.path()).unwrap();
    assert_eq!(f.scan(), 0);
    assert_eq!(f.hosts(), [A]);
}

#[test]
fn ages() {
    let mut f = Fixture::new();
    f.write(
        "a.yaml",
        &service("a").replace("  name: a\n", "  name: a\n  creationTimestamp: '2020-01-01T00:00:00Z'\n"),
    );
    f.write("b.yaml", &service("b"));
    f.scan();
    let age = |f: &Fixture, host: &str| f.store.snapshot().service("default", host).unwrap().age.created;
    assert_eq!(age(&f, A), 1_577_836_800_000);
    let first = age(&f, B);
    f.write("b.yaml", &service("b").replace("80", "81"));
    f.scan();
    assert_eq!(age(&f, B), first, "an edit does not make it younger");
}

#[test]
fn every_kind_is_read() {
    let mut f = Fixture::new();
    f.write("all.yaml", "apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: Service
metadata: {name: my-nginx, namespace: prod, labels: {run: my-nginx}, uid: x, resourceVersion: '1'}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ports: [{port: 80, protocol: TCP, targetPort: 80}]
  selector: {run: my-nginx}
  sessionAffinity: None
  type: ClusterIP
status: {loadBalancer: {}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: my-nginx-x, namespace: prod, labels: {kubernetes.io/service-name: my-nginx}}
addressType: IPv4
endpoints:
- addresses: [10.244.0.5]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: node-1
  targetRef: {kind: Pod, name: my-nginx-1, namespace: prod}
- addresses: [10.244.0.6]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: node-1
  targetRef: {kind: Pod, name: my-nginx-2, namespace: prod}
ports:
- {name: '', port: 80, protocol: TCP}
---
apiVersion: networking.istio.io/v1alpha3
kind: WorkloadEntry
metadata: {name: vm, namespace: prod}
spec: {address: 10.9.9.9, labels: {run: my-nginx}}
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: ext}
spec: {hosts: [example.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d}
spec: {host: my-nginx.prod.svc.cluster.local, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec: {hosts: [my-nginx.prod.svc.cluster.local], http: [{route: [{destination: {host: my-nginx.prod.svc.cluster.local, subset: v1}}]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'accessLogFile: /dev/stdout'}
");
    assert_eq!(f.scan(), 8);
    assert_eq!(f.reports, [""; 0]);
    let snapshot = f.store.snapshot();
    let nginx = snapshot.service("default", "my-nginx.prod.svc.cluster.local").unwrap();
    let endpoints = snapshot.endpoints(&nginx.key, 80).unwrap();
    let addresses: Vec<_> = endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.9.9.9", "10.244.0.5", "10.244.0.6"]);
    assert_eq!(snapshot.mesh.access_log_file.as_deref(), Some("/dev/stdout"));
    assert!(f.store.statuses().iter().any(|s| s.key.kind == Kind::MeshConfig));
}

/// Waits until `wanted` holds of what is published.
async fn until(
    snapshot: &mut tokio::sync::watch::Receiver<Arc<MeshSnapshot>>,
    what: &str,
    wanted: impl Fn(&MeshSnapshot) -> bool,
) {
    let found = tokio::time::timeout(Duration::from_secs(60), snapshot.wait_for(|s| wanted(s))).await;
    found.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_folder() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        // as editors do: a new file, renamed over the old one
        let new = dir.path().join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, dir.path().join(name)).unwrap();
    };
    write("a.yaml", &service("a"));
    let mut folder = Folder::new(dir.path(), "cluster.local".into());
    let Parts { writer, feed, registrations, outputs, .. } = Writer::new("cluster.local".into());
    let task = tokio::spawn(writer.run());
    let scan = folder.scan().unwrap();
    feed.send_and_wait(scan.updates, scan.reports).await;
    let mut snapshot = outputs.snapshot.clone();
    assert!(snapshot.borrow().service("x", A).is_some());
    let follower = Follower::start(folder, feed, Timing::default()).unwrap();
    let has = |host: &'static str, port: u16| {
        move |s: &MeshSnapshot| s.service("x", host).is_some_and(|s| s.ports[0].number == port)
    };
    write("a.yaml", &service("a").replace("80", "81"));
    until(&mut snapshot, "renamed over", has(A, 81)).await;
    fs::write(dir.path().join("a.yaml"), service("a").replace("80", "82")).unwrap();
    until(&mut snapshot, "written in place", has(A, 82)).await;
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/b.yaml"), service("b")).unwrap();
    until(&mut snapshot, "new folder", has(B, 80)).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    until(&mut snapshot, "deleted", |s| s.service("x", A).is_none()).await;
    let mut status = outputs.status.clone();
    fs::write(dir.path().join("sub/b.yaml"), "{").unwrap();
    let reported = status.wait_for(|s| s.reports.iter().any(|r| r.message.contains("is no YAML")));
    tokio::time::timeout(Duration::from_secs(60), reported).await.unwrap().unwrap();
    assert!(snapshot.borrow().service("x", B).is_some(), "last good");
    let begin = Instant::now();
    drop(follower);
    assert!(begin.elapsed() < Duration::from_secs(30), "the thread ends when it is dropped");
    drop(registrations);
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gives_no_hint_is_found_by_the_poll() {
    let elsewhere = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a.yaml"), service("a")).unwrap();
    symlink(elsewhere.path().join("a.yaml"), dir.path().join("a.yaml")).unwrap();
    let folder = Folder::new(dir.path(), "cluster.local".into());
    let Parts { writer, feed, registrations, outputs, .. } = Writer::new("cluster.local".into());
    let task = tokio::spawn(writer.run());
    let timing = Timing { poll: Duration::from_millis(50), ..Timing::default() };
    let follower = Follower::start(folder, feed, timing).unwrap();
    let mut snapshot = outputs.snapshot.clone();
    until(&mut snapshot, "first scan", |s| s.service("x", A).is_some()).await;
    fs::write(elsewhere.path().join("a.yaml"), service("a").replace("80", "81")).unwrap();
    until(&mut snapshot, "polled", |s| s.service("x", A).is_some_and(|s| s.ports[0].number == 81)).await;
    drop((follower, registrations));
    task.await.unwrap();
}

/// A pipe would be waited for, a device read without end.
#[test]
fn what_is_no_regular_file_is_refused_and_the_rest_is_read() {
    let mut f = Fixture::new();
    std::os::unix::fs::symlink("/dev/zero", f.dir.path().join("zero.yaml")).unwrap();
    f.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n");
    f.scan();
    assert_eq!(f.reports, ["zero.yaml: is no regular file"]);
    assert!(f.store.snapshot().service("default", "web.default.svc.cluster.local").is_some());
}
