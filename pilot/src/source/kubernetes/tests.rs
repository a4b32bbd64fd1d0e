//! The collector, told what watches would tell it.

use std::sync::Arc;

use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::Scope;
use super::collect::Collector;
use super::kind::{Role, Watched, Where};
use super::watch::{News, Restart, What};
use crate::store::writer::{Outputs, Parts, Status, Writer};

/// A collector over a real writer, and what a test needs to know of them.
struct Fixture {
    news: mpsc::Sender<News>,
    synced: oneshot::Receiver<()>,
    outputs: Outputs,
    watched: Vec<Watched>,
}

impl Fixture {
    fn new() -> Self {
        let Parts { writer, feed, outputs, .. } = Writer::new("cluster.local".into());
        tokio::spawn(writer.run());
        let scope = Scope {
            namespace: "osier-system".into(),
            revision: "default".into(),
            cluster_domain: "cluster.local".into(),
        };
        let watched = Watched::all(&scope);
        let (news, arriving) = mpsc::channel(64);
        let (done, synced) = oneshot::channel();
        let collector = Collector::new(watched.clone(), scope, feed, Restart::default());
        tokio::spawn(collector.run(arriving, done));
        Self { news, synced, outputs, watched }
    }

    /// One with everything listed: `objects` by kind, the rest empty.
    async fn synced(objects: &[(&str, Value)]) -> Self {
        let mut fixture = Self::new();
        for index in 0..fixture.watched.len() {
            fixture.list(index, objects).await;
        }
        (&mut fixture.synced).await.expect("synced");
        fixture
    }

    /// A whole list of the kind at `index`.
    async fn list(&self, index: usize, objects: &[(&str, Value)]) {
        self.tell(index, Event::Init).await;
        for (_, object) in objects.iter().filter(|(kind, object)| self.is_of(index, kind, object)) {
            self.tell(index, Event::InitApply(read(object))).await;
        }
        self.tell(index, Event::InitDone).await;
    }

    fn is_of(&self, index: usize, kind: &str, object: &Value) -> bool {
        let watched = &self.watched[index];
        watched.kind() == kind
            && match &watched.place {
                Where::Everywhere => true,
                Where::Object { name, .. } => object["metadata"]["name"] == json!(name),
            }
    }

    fn index(&self, kind: &str) -> usize {
        self.watched.iter().position(|watched| watched.kind() == kind).expect("a kind that is watched")
    }

    async fn tell(&self, index: usize, event: Event<DynamicObject>) {
        self.say(index, What::Event(Box::new(event))).await;
    }

    async fn say(&self, index: usize, what: What) {
        self.news.send(News { index, what }).await.expect("the collector listens");
    }

    /// Waits until a status says so.
    async fn until(&mut self, what: &str, holds: impl Fn(&Status) -> bool) {
        let wait = self.outputs.status.wait_for(|status| holds(status));
        let done = tokio::time::timeout(std::time::Duration::from_secs(10), wait).await;
        done.unwrap_or_else(|_| panic!("never: {what}")).expect("the writer runs");
    }

    fn hosts(&self) -> Vec<String> {
        let snapshot = self.outputs.snapshot.borrow();
        let mut hosts: Vec<String> = snapshot.services.iter().map(|s| s.name.to_string()).collect();
        hosts.sort();
        hosts
    }
}

fn read(object: &Value) -> DynamicObject {
    serde_json::from_value(object.clone()).expect("an object")
}

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": { "namespace": namespace, "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "clusterIP": "10.96.0.7", "ports": [{ "name": "http", "port": 80 }] },
    })
}

fn knows(status: &Status, name: &str) -> bool {
    status.resources.iter().any(|resource| &*resource.key.name == name)
}

fn says(status: &Status, text: &str) -> bool {
    status.reports.iter().any(|report| report.to_string().contains(text))
}

#[tokio::test]
async fn nothing_is_in_force_before_everything_was_listed() {
    let mut fixture = Fixture::new();
    let objects = [("Service", service("default", "web"))];
    for index in 0..fixture.watched.len() - 1 {
        fixture.list(index, &objects).await;
    }
    tokio::task::yield_now().await;
    assert!(fixture.synced.try_recv().is_err());
    assert_eq!(fixture.hosts(), [""; 0]);
    // A kind that isn't there is an empty list.
    fixture.say(fixture.watched.len() - 1, What::Absent).await;
    (&mut fixture.synced).await.expect("synced");
    assert_eq!(fixture.hosts(), ["web"]);
}

#[tokio::test]
async fn a_new_list_takes_away_what_is_gone_and_an_outage_takes_nothing() {
    let mut fixture =
        Fixture::synced(&[("Service", service("a", "one")), ("Service", service("a", "two"))]).await;
    assert_eq!(fixture.hosts(), ["one", "two"]);
    let services = fixture.index("Service");
    fixture.say(services, What::Trouble("services can't be watched: connection refused".into())).await;
    fixture.until("the trouble is told", |status| says(status, "connection refused")).await;
    assert_eq!(fixture.hosts(), ["one", "two"]);
    fixture.list(services, &[("Service", service("a", "two")), ("Service", service("a", "three"))]).await;
    fixture.until("one is gone", |s| !knows(s, "one") && knows(s, "three") && !says(s, "refused")).await;
    assert_eq!(fixture.hosts(), ["three", "two"]);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_a_report_and_the_last_good_version_stays() {
    let rule = |weight: Value| {
        json!({
            "metadata": { "namespace": "a", "name": "split" },
            "spec": { "hosts": ["web"], "http": [{ "route": [{ "destination": { "host": "web" }, "weight": weight }] }] },
        })
    };
    let mut fixture =
        Fixture::synced(&[("Service", service("a", "web")), ("VirtualService", rule(json!(100)))]).await;
    let rules = fixture.index("VirtualService");
    fixture.tell(rules, Event::Apply(read(&rule(json!("many"))))).await;
    fixture.until("a report", |s| says(s, "VirtualService a/split: spec.http[0].route[0].weight")).await;
    assert_eq!(fixture.outputs.snapshot.borrow().routes.iter().count(), 1, "the last good one");
    fixture.tell(rules, Event::Delete(read(&rule(json!("many"))))).await;
    fixture.until("it is gone", |s| !knows(s, "split") && s.reports.is_empty()).await;
    assert_eq!(fixture.outputs.snapshot.borrow().routes.iter().count(), 0);
}

#[tokio::test]
async fn configuration_for_another_revision_is_left_alone() {
    let mut rule = json!({
        "metadata": { "namespace": "a", "name": "other", "labels": { "istio.io/rev": "canary" } },
        "spec": { "host": "web" },
    });
    let mut fixture = Fixture::synced(&[("DestinationRule", rule.clone())]).await;
    assert!(!knows(&fixture.outputs.status.borrow(), "other"));
    rule["metadata"]["labels"]["istio.io/rev"] = json!("default");
    let rules = fixture.index("DestinationRule");
    fixture.tell(rules, Event::Apply(read(&rule))).await;
    fixture.until("it is ours now", |status| knows(status, "other")).await;
}

fn mesh_config(name: &str, mesh: &str) -> Value {
    json!({ "metadata": { "namespace": "osier-system", "name": name }, "data": { "mesh": mesh } })
}

#[tokio::test]
async fn the_first_mesh_configuration_that_is_there_holds() {
    let ours = mesh_config("osier", "rootNamespace: ours");
    let theirs = mesh_config("istio", "rootNamespace: theirs");
    let mut fixture = Fixture::synced(&[("ConfigMap", ours.clone()), ("ConfigMap", theirs)]).await;
    let root = |f: &Fixture| f.outputs.snapshot.borrow().mesh.root_namespace.to_string();
    assert_eq!(root(&fixture), "ours");
    // One that can't be read changes nothing, and is named as it is called.
    fixture.tell(0, Event::Apply(read(&mesh_config("osier", "rootNamespace: [")))).await;
    fixture.until("a report", |s| says(s, "osier: data.mesh")).await;
    assert_eq!(root(&fixture), "ours");
    fixture.tell(0, Event::Delete(read(&ours))).await;
    fixture.until("mended", |s| s.reports.is_empty()).await;
    assert_eq!(root(&fixture), "theirs");
}

#[tokio::test]
async fn discovery_selectors_choose_namespaces() {
    let namespace =
        |name: &str, mesh: &str| json!({ "metadata": { "name": name, "labels": { "mesh": mesh } } });
    let selected = "discoverySelectors: [{matchLabels: {mesh: 'on'}}]";
    let objects = [
        ("ConfigMap", mesh_config("osier", selected)),
        ("Namespace", namespace("a", "on")),
        ("Namespace", namespace("b", "off")),
        ("Service", service("a", "in")),
        ("Service", service("b", "out")),
    ];
    let mut fixture = Fixture::synced(&objects).await;
    // What came before the selectors did is listed again.
    let again = async |f: &Fixture| f.list(f.index("Service"), &objects).await;
    again(&fixture).await;
    fixture.until("only the selected one", |s| knows(s, "in") && !knows(s, "out")).await;
    let namespaces = fixture.index("Namespace");
    fixture.tell(namespaces, Event::Apply(read(&namespace("b", "on")))).await;
    again(&fixture).await;
    fixture.until("both", |s| knows(s, "in") && knows(s, "out")).await;
}

#[test]
fn what_is_watched_is_named_as_rbac_names_it() {
    let scope =
        Scope { namespace: "n".into(), revision: "r1".into(), cluster_domain: Arc::from("cluster.local") };
    let all = Watched::all(&scope);
    let named: Vec<String> = all.iter().map(Watched::resource).collect();
    assert!(named.contains(&"virtualservices.networking.istio.io".to_owned()));
    assert!(named.contains(&"pods".to_owned()));
    let configs: Vec<&Where> = all.iter().filter(|w| w.role == Role::MeshConfig).map(|w| &w.place).collect();
    let named = |name: &str| Where::Object { namespace: "n".into(), name: name.into() };
    assert_eq!(configs, [&named("osier-r1"), &named("istio-r1")]);
}
