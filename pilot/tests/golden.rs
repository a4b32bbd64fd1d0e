//! Golden files: a folder of YAML and a client in, resources out. Differences are reviewed like code.
//!
//! Each folder of `golden/` is a case: `mesh.yaml`, `node.yaml` (the client's xDS node, under `ask` what it asks for by
//! name, without which it subscribes as Envoy does, and under `identity` its service account where it has proved one), `resources.json`, and `reports.txt` where there is something to say. To write the expected files anew:
//!
//! ```sh
//! OSIER_UPDATE=1 cargo test -p osier-pilot --test golden
//! ```

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use osier_pilot::r#gen::key::{Key, ResourceType, View};
use osier_pilot::r#gen::route::Plan;
use osier_pilot::r#gen::scope::Scope;
use osier_pilot::r#gen::{self, Generated};
use osier_pilot::snapshot::MeshSnapshot;
use osier_pilot::source::folder::Folder;
use osier_pilot::store::Store;
use osier_pilot::xds::node::Client;
use osier_proto::types::cluster::Cluster;
use osier_proto::types::core::Node;
use serde_json::{Map, Value};

#[test]
fn resources_are_as_expected() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&golden).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= 7, "there are cases in {}", golden.display());
    let update = std::env::var_os("OSIER_UPDATE").is_some();
    let mut differences = Vec::new();
    for case in cases {
        let made = resources_of(&case);
        let expected = case.join("resources.json");
        if update {
            std::fs::write(&expected, &made).unwrap();
        } else {
            let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
            differences.extend(difference(&case, &wanted, &made));
        }
    }
    assert!(
        differences.is_empty(),
        "{}\nif this is meant: OSIER_UPDATE=1 cargo test -p osier-pilot --test golden, and look at the diff",
        differences.join("\n")
    );
}

/// The first line that differs, with its neighbours.
fn difference(case: &Path, wanted: &str, made: &str) -> Option<String> {
    let (wanted, made): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), made.lines().collect());
    let at = (0..wanted.len().max(made.len())).find(|at| wanted.get(*at) != made.get(*at))?;
    let from = at.saturating_sub(3);
    let show = |lines: &[&str]| lines.iter().skip(from).take(7).copied().collect::<Vec<_>>().join("\n");
    let name = case.file_name().unwrap_or_default().to_string_lossy().to_string();
    Some(format!("{name}, line {}:\n--- expected\n{}\n--- made\n{}", at + 1, show(&wanted), show(&made)))
}

fn resources_of(case: &Path) -> String {
    let snapshot = snapshot(case);
    let text = std::fs::read_to_string(case.join("node.yaml")).unwrap();
    let mut node: Map<String, Value> = serde_saphyr::from_str(&text).unwrap();
    let (ask, identity) = (node.remove("ask"), node.remove("identity"));
    let node: Node = osier_proto::json::from_value(&Value::Object(node)).unwrap();
    let mut view = Client::parse(Some(&node)).unwrap().view;
    Arc::make_mut(&mut view).proxy.mutual_tls = identity.is_some();
    let asked = match ask {
        Some(ask) => serde_json::from_value(ask).unwrap(),
        None => BTreeMap::new(),
    };
    let made = Subscriber { snapshot: &snapshot, view, made: Map::new() }.run(asked);
    serde_json::to_string_pretty(&made).unwrap() + "\n"
}

fn snapshot(case: &Path) -> Arc<MeshSnapshot> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("mesh.yaml"), folder.path().join("mesh.yaml")).unwrap();
    let scan = Folder::new(folder.path(), "cluster.local".into()).scan().unwrap();
    let said: String = scan.reports.iter().map(|report| format!("{report}\n")).collect();
    let expected = std::fs::read_to_string(case.join("reports.txt")).unwrap_or_default();
    assert_eq!(said, expected, "{}", case.display());
    let mut store = Store::new("cluster.local".into());
    store.apply(scan.updates);
    store.snapshot().clone()
}

/// A client that follows references: what a listener names it asks for, and so on.
struct Subscriber<'a> {
    snapshot: &'a MeshSnapshot,
    view: Arc<View>,
    made: Map<String, Value>,
}

impl Subscriber<'_> {
    fn run(mut self, asked: BTreeMap<String, Vec<String>>) -> Map<String, Value> {
        let wildcard = asked.is_empty();
        let names = |kind: ResourceType| match wildcard {
            true => r#gen::names(kind, &self.view, self.snapshot),
            false => asked.get(word(kind)).cloned().unwrap_or_default(),
        };
        let (mut clusters, listeners) = (names(ResourceType::Cluster), names(ResourceType::Listener));
        let (mut routes, hosts) = (names(ResourceType::Routes), names(ResourceType::VirtualHost));
        let tables = names(ResourceType::NameTable);
        self.all(ResourceType::NameTable, tables);
        for made in self.all(ResourceType::Listener, listeners) {
            routes.extend(made.routes.iter().cloned());
            if !wildcard {
                clusters.extend(made.clusters.iter().cloned());
            }
        }
        for made in self.all(ResourceType::VirtualHost, hosts) {
            clusters.extend(made.clusters.iter().cloned());
        }
        self.all(ResourceType::Routes, routes);
        let mut endpoints = Vec::new();
        for made in self.all(ResourceType::Cluster, clusters) {
            let cluster: Cluster = made.resource.body.unpack().unwrap();
            endpoints.extend(cluster.eds_cluster_config.map(|c| c.service_name));
        }
        self.all(ResourceType::Endpoints, endpoints);
        self.made
    }

    fn all(&mut self, kind: ResourceType, names: Vec<String>) -> Vec<Generated> {
        let mut shown = Map::new();
        let mut all = Vec::new();
        for name in BTreeSet::from_iter(names) {
            let key = Key { kind, name: name.as_str().into(), view: self.view.clone() };
            let plan = |config: &_| Plan::build(&Scope::new(self.snapshot, &key.view), config).map(Arc::new);
            let made = r#gen::generate(&key, self.snapshot, plan);
            let value = made.as_ref().map(|m| osier_proto::json::any_to_value(&m.resource.body));
            shown.insert(name, value.unwrap_or(Value::Null));
            all.extend(made);
        }
        if !shown.is_empty() {
            self.made.insert(word(kind).into(), Value::Object(shown));
        }
        all
    }
}

fn word(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "clusters",
        ResourceType::Endpoints => "endpoints",
        ResourceType::Listener => "listeners",
        ResourceType::Routes => "routes",
        ResourceType::Secret => "secrets",
        ResourceType::VirtualHost => "virtual_hosts",
        ResourceType::NameTable => "name_tables",
    }
}
