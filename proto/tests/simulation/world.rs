//! What exists: clusters with endpoints, listeners, and routes and virtual hosts that refer to clusters. Every state of the world is
//! whole: nothing refers to what is not there.

use std::collections::{BTreeMap, BTreeSet};

use osier_proto::Any;
use osier_proto::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use osier_proto::xds::Resource;
use osier_proto::xds::{Request, Response};
use prost::Message;
use rand::RngExt;
use rand::rngs::SmallRng;

pub const TYPES: [&str; 5] = [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST];

/// What a resource says, as text on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Grows with each change.
    pub revision: u32,
    /// Clients that refuse anything refuse this.
    pub bad: bool,
    /// Clusters that it refers to.
    pub clusters: BTreeSet<String>,
}

/// The message: as in every resource, field 1 is the name.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    text: String,
}

/// All resources; also what a client has of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    resources: BTreeMap<(String, String), Content>,
    revision: u32,
}

impl World {
    pub fn all_names(type_url: &str) -> Vec<String> {
        let (prefix, count) = match type_url {
            CLUSTER | CLUSTER_LOAD_ASSIGNMENT => ("c", 8),
            LISTENER => ("l", 3),
            ROUTE_CONFIGURATION => ("r", 3),
            _ => ("r0/h", 5),
        };
        (0..count).map(|i| format!("{prefix}{i}")).collect()
    }

    pub fn get(&self, type_url: &str, name: &str) -> Option<&Content> {
        self.resources.get(&(type_url.to_owned(), name.to_owned()))
    }

    pub fn of_type(&self, type_url: &str) -> impl Iterator<Item = (&String, &Content)> {
        self.resources
            .iter()
            .filter(move |((t, _), _)| t == type_url)
            .map(|((_, name), content)| (name, content))
    }

    pub fn set(&mut self, type_url: &str, name: &str, content: Option<Content>) {
        let key = (type_url.to_owned(), name.to_owned());
        match content {
            Some(content) => self.resources.insert(key, content),
            None => self.resources.remove(&key),
        };
    }

    /// Type, name and cluster of everything that refers to a cluster.
    pub fn references(&self) -> impl Iterator<Item = (&str, &str, String)> {
        self.resources.iter().flat_map(|((type_url, name), content)| {
            content.clusters.iter().map(|cluster| (type_url.as_str(), name.as_str(), cluster.clone()))
        })
    }

    pub fn resource(&self, type_url: &str, name: &str) -> Option<Resource> {
        let content = self.get(type_url, name)?;
        let clusters: Vec<&str> = content.clusters.iter().map(String::as_str).collect();
        let text = format!("{name}|{}|{}|{}", content.revision, content.bad, clusters.join(","));
        let value = Body { name: name.to_owned(), text }.encode_to_vec().into();
        Some(Resource::from_any(name, Any { type_url: type_url.to_owned(), value }))
    }

    pub fn clusters_of(&self, type_url: &str, name: &str) -> Vec<Resource> {
        let clusters = self.get(type_url, name).map(|content| content.clusters.clone()).unwrap_or_default();
        clusters.iter().filter_map(|cluster| self.resource(CLUSTER, cluster)).collect()
    }

    /// One change of whole meaning; what it touched, in no order.
    pub fn change(&mut self, rng: &mut SmallRng) -> Vec<(&'static str, String)> {
        self.revision += 1;
        let mut pick = |type_url: &'static str| {
            let names = Self::all_names(type_url);
            names[rng.random_range(0..names.len())].clone()
        };
        let (cluster, listener) = (pick(CLUSTER), pick(LISTENER));
        let referring =
            [(ROUTE_CONFIGURATION, pick(ROUTE_CONFIGURATION)), (VIRTUAL_HOST, pick(VIRTUAL_HOST))];
        let bad = rng.random_ratio(1, 8);
        let revision = self.revision;
        let plain = Content { revision, bad, clusters: BTreeSet::new() };
        let mut changed = match rng.random_range(0..6) {
            0 => self.touch(LISTENER, &listener, rng.random_bool(0.7).then_some(plain)),
            1 => self.touch(
                CLUSTER_LOAD_ASSIGNMENT,
                &cluster,
                Some(plain).filter(|_| self.get(CLUSTER, &cluster).is_some()),
            ),
            2 => self.remove_cluster(&cluster),
            _ => {
                let mut changed = self.touch(CLUSTER, &cluster, Some(plain.clone()));
                changed.extend(self.touch(CLUSTER_LOAD_ASSIGNMENT, &cluster, Some(plain)));
                for (type_url, name) in referring {
                    let mut content = self.get(type_url, &name).cloned().unwrap_or_default();
                    content.clusters.insert(cluster.clone());
                    content.revision = revision;
                    changed.extend(self.touch(type_url, &name, Some(content)));
                }
                changed
            }
        };
        // The order in which generators report must not matter.
        let middle = rng.random_range(0..=changed.len());
        changed.rotate_left(middle);
        changed
    }

    /// Removes a cluster and everything that it alone held together.
    fn remove_cluster(&mut self, cluster: &str) -> Vec<(&'static str, String)> {
        let mut changed = self.touch(CLUSTER, cluster, None);
        changed.extend(self.touch(CLUSTER_LOAD_ASSIGNMENT, cluster, None));
        for type_url in [ROUTE_CONFIGURATION, VIRTUAL_HOST] {
            let referring: Vec<(String, Content)> = self
                .of_type(type_url)
                .filter(|(_, c)| c.clusters.contains(cluster))
                .map(|(n, c)| (n.clone(), c.clone()))
                .collect();
            for (name, mut content) in referring {
                content.clusters.remove(cluster);
                content.revision = self.revision;
                let left = Some(content).filter(|content| !content.clusters.is_empty());
                changed.extend(self.touch(type_url, &name, left));
            }
        }
        changed
    }

    fn touch(
        &mut self,
        type_url: &'static str,
        name: &str,
        content: Option<Content>,
    ) -> Vec<(&'static str, String)> {
        self.set(type_url, name, content);
        vec![(type_url, name.to_owned())]
    }

    /// Mends everything that is bad, and says what it was.
    pub fn repair(&mut self) -> Vec<(&'static str, String)> {
        let mut repaired = Vec::new();
        for ((type_url, name), content) in &mut self.resources {
            if std::mem::take(&mut content.bad) {
                let type_url = TYPES.into_iter().find(|t| t == type_url).expect("one of them");
                repaired.push((type_url, name.clone()));
            }
        }
        repaired
    }
}

/// Name and content of a resource.
pub fn read(body: &Any) -> (String, Content) {
    let Body { text, .. } = Body::decode(body.value.clone()).expect("one of ours");
    let parts: Vec<&str> = text.split('|').collect();
    let [name, revision, bad, clusters] = parts[..] else { panic!("{text}") };
    let clusters = clusters.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let content = Content { revision: revision.parse().expect("a number"), bad: bad == "true", clusters };
    (name.to_owned(), content)
}

pub fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

pub fn type_url(response: &Response) -> &str {
    match response {
        Response::Incremental(response) => &response.type_url,
        Response::StateOfTheWorld(response) => &response.type_url,
    }
}

pub fn show_request(request: &Request) -> String {
    match request {
        Request::Incremental(r) => format!(
            "{} +{:?} -{:?} held {:?} nonce {:?} nack {}",
            short(&r.type_url),
            r.resource_names_subscribe,
            r.resource_names_unsubscribe,
            r.initial_resource_versions.keys(),
            r.response_nonce,
            r.error_detail.is_some()
        ),
        Request::StateOfTheWorld(r) => {
            let nack = r.error_detail.is_some();
            format!("{} {:?} nonce {:?} nack {nack}", short(&r.type_url), r.resource_names, r.response_nonce)
        }
    }
}

pub fn show_response(response: &Response) -> String {
    match response {
        Response::Incremental(r) => {
            let bodies: Vec<_> =
                r.resources.iter().map(|r| r.resource.as_ref().map(|b| b.value.clone())).collect();
            format!("{} {:?} {bodies:?} -{:?}", short(&r.type_url), r.nonce, r.removed_resources)
        }
        Response::StateOfTheWorld(r) => {
            let bodies: Vec<_> = r.resources.iter().map(|body| body.value.clone()).collect();
            format!("{} {:?} {bodies:?} errors {}", short(&r.type_url), r.nonce, r.resource_errors.len())
        }
    }
}
