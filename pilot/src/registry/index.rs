//! Things by namespace and label, so that a change of one workload does not walk all services, nor the other way round.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use osier_core::labels::Labels;

/// Things by namespace and label.
#[derive(Debug)]
pub(super) struct LabelIndex<K> {
    namespaces: HashMap<Arc<str>, Namespace<K>>,
}

#[derive(Debug)]
struct Namespace<K> {
    by_label: HashMap<(String, String), BTreeSet<K>>,
    /// Selectors without labels, and workloads of any labels.
    all: BTreeSet<K>,
}

impl<K> Default for LabelIndex<K> {
    fn default() -> Self {
        Self { namespaces: HashMap::new() }
    }
}

impl<K> Default for Namespace<K> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), all: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> LabelIndex<K> {
    /// Files a workload under each of its labels.
    pub fn add_labels(&mut self, namespace: &Arc<str>, labels: &Labels, key: &K) {
        let here = self.namespaces.entry(namespace.clone()).or_default();
        here.all.insert(key.clone());
        for (name, value) in labels.iter() {
            here.by_label.entry((name.clone(), value.clone())).or_default().insert(key.clone());
        }
    }

    /// Takes a workload out.
    pub fn remove_labels(&mut self, namespace: &Arc<str>, labels: &Labels, key: &K) {
        let Some(here) = self.namespaces.get_mut(namespace) else { return };
        here.all.remove(key);
        for (name, value) in labels.iter() {
            here.remove(name, value, key);
        }
    }

    /// Workloads that may match a selector: those with its rarest label.
    pub fn candidates(&self, namespace: &Arc<str>, selector: &Labels) -> Vec<K> {
        let Some(here) = self.namespaces.get(namespace) else { return Vec::new() };
        let mut rarest = &here.all;
        for (name, value) in selector.iter() {
            match here.by_label.get(&(name.clone(), value.clone())) {
                None => return Vec::new(),
                Some(keys) if keys.len() < rarest.len() => rarest = keys,
                Some(_) => {}
            }
        }
        rarest.iter().cloned().collect()
    }

    /// Files a service under the first label of its selector; one without labels selects everything.
    pub fn add_selector(&mut self, namespace: &Arc<str>, selector: &Labels, key: &K) {
        let here = self.namespaces.entry(namespace.clone()).or_default();
        match selector.iter().next() {
            None => here.all.insert(key.clone()),
            Some((name, value)) => {
                here.by_label.entry((name.clone(), value.clone())).or_default().insert(key.clone())
            }
        };
    }

    /// Takes a service out.
    pub fn remove_selector(&mut self, namespace: &Arc<str>, selector: &Labels, key: &K) {
        let Some(here) = self.namespaces.get_mut(namespace) else { return };
        match selector.iter().next() {
            None => {
                here.all.remove(key);
            }
            Some((name, value)) => here.remove(name, value, key),
        }
    }

    /// Services whose selector may match these labels.
    pub fn of_labels(&self, namespace: &Arc<str>, labels: &Labels) -> BTreeSet<K> {
        let Some(here) = self.namespaces.get(namespace) else { return BTreeSet::new() };
        let mut found = here.all.clone();
        for (name, value) in labels.iter() {
            found.extend(here.by_label.get(&(name.clone(), value.clone())).into_iter().flatten().cloned());
        }
        found
    }
}

impl<K: Ord> Namespace<K> {
    fn remove(&mut self, name: &str, value: &str, key: &K) {
        let label = (name.to_owned(), value.to_owned());
        if let Some(keys) = self.by_label.get_mut(&label) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_label.remove(&label);
            }
        }
    }
}
