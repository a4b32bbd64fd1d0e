//! From what the watches say to batches for the store. One task; it alone knows what there is.
//!
//! A relist is compared with what is known, so that what went while nobody watched is deleted. Trouble with a watch is a report of
//! its own that goes when the watch works again.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use osier_core::labels::Labels;
use tokio::sync::{mpsc, oneshot};

use super::Scope;
use super::kind::{Role, Watched, Where};
use super::watch::{News, Restart, What};
use crate::model::{Report, ResourceKey, Severity};
use crate::source::json;
use crate::source::object::{Document, FirstSeen, Reader};
use crate::source::selection::Selection;
use crate::store::check::Resource;
use crate::store::writer::{Feed, now};
use crate::store::{Outcome, Place, Update};

/// Name of an object within its kind.
type Name = (Arc<str>, Arc<str>);

/// Takes what arrives.
pub struct Collector {
    kinds: Vec<Known>,
    scope: Scope,
    feed: Feed,
    restart: Restart,
    selection: Selection,
    /// Mesh configurations that are there, by the place of their watch: the first holds.
    mesh: BTreeMap<usize, DynamicObject>,
    updates: Vec<Update>,
    reports: BTreeMap<(usize, Name), Vec<Report>>,
}

/// What is known of one kind.
struct Known {
    watched: Watched,
    objects: HashMap<Name, Option<ResourceKey>>,
    /// Names of the list that is being read.
    listing: Option<HashSet<Name>>,
    /// Listed at least once, or absent.
    synced: bool,
    trouble: Option<String>,
}

/// The API server dates everything; this is for what it forgot.
struct Undated;

impl FirstSeen for Undated {
    fn first_seen(&mut self, _: &ResourceKey) -> i64 {
        now()
    }
}

impl Collector {
    /// Knows nothing yet.
    pub fn new(watched: Vec<Watched>, scope: Scope, feed: Feed, restart: Restart) -> Self {
        let known =
            |watched| Known { watched, objects: HashMap::new(), listing: None, synced: false, trouble: None };
        Self {
            kinds: watched.into_iter().map(known).collect(),
            scope,
            feed,
            restart,
            selection: Selection::default(),
            mesh: BTreeMap::new(),
            updates: Vec::new(),
            reports: BTreeMap::new(),
        }
    }

    /// Runs until the watches end. `done` is told once, when everything was listed and is in force.
    pub async fn run(mut self, mut arriving: mpsc::Receiver<News>, done: oneshot::Sender<()>) {
        let mut done = Some(done);
        let mut waiting = Vec::new();
        while arriving.recv_many(&mut waiting, 1024).await > 0 {
            let mut moved = false;
            for news in waiting.drain(..) {
                moved |= self.take(news);
            }
            if done.is_none() {
                if moved || !self.updates.is_empty() {
                    self.feed.send(std::mem::take(&mut self.updates), self.all_reports());
                }
                continue;
            }
            if moved {
                // Whoever waits for the first list wants to know what holds it up.
                self.feed.send(Vec::new(), self.all_reports());
            }
            if self.kinds.iter().all(|kind| kind.synced) {
                self.feed.send_and_wait(std::mem::take(&mut self.updates), self.all_reports()).await;
                let _ = done.take().map(|done| done.send(()));
            }
        }
    }

    /// True if there may be other reports now.
    fn take(&mut self, News { index, what }: News) -> bool {
        let trouble = self.kinds[index].trouble.take();
        match what {
            What::Trouble(message) => {
                let new = trouble.as_ref() != Some(&message);
                self.kinds[index].trouble = Some(message);
                return new;
            }
            What::Absent => {
                self.kinds[index].listing = Some(HashSet::new());
                self.listed(index);
            }
            What::Event(event) => self.event(index, *event),
        }
        trouble.is_some()
    }

    fn event(&mut self, index: usize, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.kinds[index].listing = Some(HashSet::new()),
            Event::InitApply(object) => {
                let name = name(&object);
                if let Some(listing) = &mut self.kinds[index].listing {
                    listing.insert(name.clone());
                }
                self.apply(index, name, object);
            }
            Event::InitDone => self.listed(index),
            Event::Apply(object) => self.apply(index, name(&object), object),
            Event::Delete(object) => self.delete(index, &name(&object)),
        }
    }

    /// A list is complete: what isn't in it is gone.
    fn listed(&mut self, index: usize) {
        let kind = &mut self.kinds[index];
        kind.synced = true;
        let Some(listing) = kind.listing.take() else { return };
        let gone: Vec<Name> = kind.objects.keys().filter(|name| !listing.contains(*name)).cloned().collect();
        for name in gone {
            self.delete(index, &name);
        }
    }

    fn apply(&mut self, index: usize, name: Name, object: DynamicObject) {
        match self.kinds[index].watched.role {
            Role::MeshConfig => {
                self.kinds[index].objects.insert(name, None);
                self.mesh.insert(index, object);
                return self.settle_mesh();
            }
            Role::Namespace => {
                let labels: Labels = object.labels().clone().into();
                if self.selection.label(&name.1, Some(labels)) {
                    self.list_again();
                }
            }
            Role::Workload if !self.selection.counts(&name.0) => return self.delete(index, &name),
            Role::Configuration if !self.is_for_us(&name.0, &object) => return self.delete(index, &name),
            Role::Workload | Role::Configuration | Role::Cluster => {}
        }
        let document = self.read(index, object);
        self.note(index, name, document);
    }

    fn is_for_us(&self, namespace: &str, object: &DynamicObject) -> bool {
        let revision = object.labels().get("istio.io/rev");
        self.selection.counts(namespace) && revision.is_none_or(|revision| *revision == self.scope.revision)
    }

    fn note(&mut self, index: usize, name: Name, document: Document) {
        let Document { key, outcome, place, reports, unidentified: _ } = document;
        match reports.is_empty() {
            true => self.reports.remove(&(index, name.clone())),
            false => self.reports.insert((index, name.clone()), reports),
        };
        let before = self.kinds[index].objects.insert(name, key.clone());
        // A resource that can't be told any more takes its former self with it.
        if let Some(former) = before.flatten().filter(|former| Some(former) != key.as_ref()) {
            self.updates.push(Update { key: former, outcome: Outcome::Deleted, place: place.clone() });
        }
        if let Some(key) = key {
            self.updates.push(Update { key, outcome, place });
        }
    }

    fn delete(&mut self, index: usize, name: &Name) {
        let Some(key) = self.kinds[index].objects.remove(name) else { return };
        self.reports.remove(&(index, name.clone()));
        match self.kinds[index].watched.role {
            Role::MeshConfig => {
                self.mesh.remove(&index);
                return self.settle_mesh();
            }
            Role::Namespace if self.selection.label(&name.1, None) => self.list_again(),
            _ => {}
        }
        if let Some(key) = key {
            self.updates.push(Update { key, outcome: Outcome::Deleted, place: Place::default() });
        }
    }

    /// Puts the mesh configuration that holds in force.
    fn settle_mesh(&mut self) {
        let Some((&index, object)) = self.mesh.first_key_value() else {
            let name: Name = ("".into(), "mesh".into());
            self.reports.remove(&(0, name));
            let key = ResourceKey::new(crate::model::Kind::MeshConfig, "", MESH_KEY);
            self.updates.push(Update { key, outcome: Outcome::Deleted, place: Place::default() });
            if self.selection.select(Arc::default()) {
                self.list_again();
            }
            return;
        };
        let mut object = object.clone();
        // Whatever its ConfigMap is called here, it is the one mesh configuration.
        object.metadata.name = Some(MESH_KEY.into());
        let mut document = self.read(index, object);
        if let (Where::Object { name, .. }, false) =
            (&self.kinds[index].watched.place, document.reports.is_empty())
        {
            document.reports.iter_mut().for_each(|report| report.name = name.as_str().into());
        }
        if let Outcome::Applied(Resource::Mesh(mesh)) = &document.outcome
            && self.selection.select(mesh.discovery_selectors.clone())
        {
            self.list_again();
        }
        let Document { key, outcome, place, reports, unidentified: _ } = document;
        self.reports.insert((0, ("".into(), "mesh".into())), reports);
        self.updates.extend(key.map(|key| Update { key, outcome, place }));
    }

    /// Lists everything again, since other namespaces count now.
    fn list_again(&mut self) {
        let by_namespace =
            |kind: &&mut Known| matches!(kind.watched.role, Role::Workload | Role::Configuration);
        self.kinds.iter_mut().filter(by_namespace).for_each(|kind| kind.synced = false);
        self.restart.now();
    }

    fn read(&self, index: usize, mut object: DynamicObject) -> Document {
        let watched = &self.kinds[index].watched;
        object.metadata.managed_fields = None;
        // Objects of a list come without them.
        let version = watched.versions.first();
        let types = object.types.take();
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = match (&types, version) {
            (Some(types), _) if !types.api_version.is_empty() => types.api_version.as_str().into(),
            (_, Some(version)) => version.api_version.as_str().into(),
            _ => serde_json::Value::Null,
        };
        value["kind"] = watched.kind().into();
        let mut undated = Undated;
        let mut reader =
            Reader { file: None, cluster_domain: &self.scope.cluster_domain, ages: &mut undated };
        reader.read_one(Arc::new(json::node(value)))
    }

    fn all_reports(&self) -> Vec<Report> {
        let trouble = self.kinds.iter().filter_map(|kind| {
            Some(Report {
                file: None,
                line: 0,
                kind: kind.watched.kind().into(),
                namespace: "".into(),
                name: "".into(),
                field: String::new(),
                message: kind.trouble.clone()?,
                severity: Severity::Error,
            })
        });
        trouble.chain(self.reports.values().flatten().cloned()).collect()
    }
}

/// Name under which the mesh configuration is known, whatever its ConfigMap is called.
const MESH_KEY: &str = "istio";

fn name(object: &DynamicObject) -> Name {
    (object.namespace().unwrap_or_default().into(), object.name_any().into())
}
