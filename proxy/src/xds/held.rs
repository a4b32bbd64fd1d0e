//! What is held of each resource: the version in force, the one that warms up, and the last refused one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use osier_proto::Any;
use osier_proto::types;
use tokio::time::Instant;

use crate::compile::Rejected;

/// The types that the proxy subscribes to, in the order in which they are put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Assignment,
    /// RDS.
    Routes,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// VHDS.
    Host,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cluster, Self::Assignment, Self::Routes, Self::Secret, Self::Listener, Self::Host];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => types::CLUSTER,
            Self::Assignment => types::CLUSTER_LOAD_ASSIGNMENT,
            Self::Routes => types::ROUTE_CONFIGURATION,
            Self::Secret => types::SECRET,
            Self::Listener => types::LISTENER,
            Self::Host => types::VIRTUAL_HOST,
        }
    }

    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// One version of a resource, as the control plane sent it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The resource.
    pub(crate) body: Any,
    /// The control plane's version; empty for what the bootstrap file holds.
    pub(crate) version: Arc<str>,
    /// When it was accepted or refused.
    pub(crate) at: SystemTime,
}

impl Source {
    pub(crate) fn new(body: Any, version: &str) -> Self {
        Self { body, version: version.into(), at: SystemTime::now() }
    }
}

/// A version with what `compile` made of it.
#[derive(Debug)]
pub(crate) struct Revision<T> {
    pub(crate) source: Source,
    pub(crate) hash: u64,
    pub(crate) value: T,
}

/// A version that isn't in force yet.
#[derive(Debug)]
pub(crate) struct Warming<T> {
    pub(crate) revision: Revision<T>,
    /// Put it in force then, complete or not; `None` waits for ever.
    pub(crate) deadline: Option<Instant>,
}

/// All that is held of one resource.
#[derive(Debug)]
pub(crate) struct Held<T> {
    pub(crate) active: Option<Revision<T>>,
    pub(crate) warming: Option<Warming<T>>,
    /// The last version, if it was refused.
    pub(crate) refused: Option<(Source, String)>,
    /// From the bootstrap file: nobody may change it.
    pub(crate) fixed: bool,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { active: None, warming: None, refused: None, fixed: false }
    }
}

impl<T> Held<T> {
    /// The newest accepted version, in force or not.
    pub(crate) fn newest(&self) -> Option<&Revision<T>> {
        self.warming.as_ref().map(|w| &w.revision).or(self.active.as_ref())
    }

    pub(crate) fn newest_mut(&mut self) -> Option<&mut Revision<T>> {
        self.warming.as_mut().map(|w| &mut w.revision).or(self.active.as_mut())
    }

    /// Both accepted versions.
    pub(crate) fn revisions(&self) -> impl Iterator<Item = &Revision<T>> {
        self.active.iter().chain(self.warming.as_ref().map(|w| &w.revision))
    }
}

/// All resources of one type.
#[derive(Debug)]
pub(crate) struct Table<T> {
    held: HashMap<Arc<str>, Held<T>>,
    /// Names with a warming version: few, while the table may be large.
    warming: BTreeSet<Arc<str>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), warming: BTreeSet::new() }
    }
}

impl<T> Table<T> {
    pub(crate) fn get(&self, name: &str) -> Option<&Held<T>> {
        self.held.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Held<T>)> {
        self.held.iter()
    }

    /// The version in force.
    pub(crate) fn active(&self, name: &str) -> Option<&Revision<T>> {
        self.held.get(name)?.active.as_ref()
    }

    pub(crate) fn active_mut(&mut self, name: &str) -> Option<&mut Revision<T>> {
        self.held.get_mut(name)?.active.as_mut()
    }

    /// Records that `source` is the content already held, or hands it back as new.
    pub(crate) fn unless_held(&mut self, name: &str, source: Source, hash: u64) -> Option<Source> {
        let Some(held) = self.held.get_mut(name) else { return Some(source) };
        match held.newest_mut() {
            Some(newest) if newest.hash == hash => {
                newest.source.version = source.version;
                held.refused = None;
                None
            }
            _ => Some(source),
        }
    }

    /// Takes a version that isn't in force yet, in place of an older one that isn't either.
    pub(crate) fn warm(&mut self, name: &str, revision: Revision<T>, deadline: Option<Instant>) {
        let name: Arc<str> = name.into();
        let held = self.held.entry(name.clone()).or_default();
        held.warming = Some(Warming { revision, deadline });
        held.refused = None;
        self.warming.insert(name);
    }

    /// Puts the warming version in force.
    pub(crate) fn activate(&mut self, name: &str) -> Option<&mut Revision<T>> {
        self.warming.remove(name);
        let held = self.held.get_mut(name)?;
        if let Some(warming) = held.warming.take() {
            held.active = Some(warming.revision);
        }
        held.active.as_mut()
    }

    /// Records a version that was refused; what is held stays.
    pub(crate) fn refuse(&mut self, name: &str, source: Source, error: Rejected) -> Rejected {
        self.held.entry(name.into()).or_default().refused = Some((source, error.to_string()));
        error
    }

    /// Marks a resource as one that nobody may change.
    pub(crate) fn fix(&mut self, name: &str) {
        self.held.entry(name.into()).or_default().fixed = true;
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Held<T>> {
        self.warming.remove(name);
        self.held.remove(name)
    }

    /// Names whose warming version is ready, or whose time is up.
    pub(crate) fn due(&self, now: Instant, ready: impl Fn(&Held<T>, &T) -> bool) -> Vec<Arc<str>> {
        let is_due = |name: &&Arc<str>| {
            let Some(held) = self.held.get(&***name) else { return false };
            held.warming.as_ref().is_some_and(|warming| {
                ready(held, &warming.revision.value) || warming.deadline.is_some_and(|d| d <= now)
            })
        };
        self.warming.iter().filter(is_due).cloned().collect()
    }

    /// When the first warming version runs out of time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let warming = self.warming.iter().filter_map(|name| self.held.get(name)?.warming.as_ref());
        warming.filter_map(|w| w.deadline).min()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.warming.is_empty()
    }
}
