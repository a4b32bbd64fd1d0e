//! Follows one kind: list, watch, list again where the watch was lost; for ever.
//!
//! A version or kind that the API server doesn't have (404) is no failure: the next version is tried, and after the last one the
//! kind counts as empty until a definition comes. Everything else is told once and tried again, more and more slowly.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, PartialObjectMeta};
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::kind::{Watched, Where};

/// Wait after the first failure; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How often to ask for a kind that isn't there when no definition says that it came.
const ABSENT: Duration = Duration::from_secs(60);

/// One thing that a watch has to say.
#[derive(Debug)]
pub struct News {
    /// Which kind.
    pub index: usize,
    /// What.
    pub what: What,
}

/// What a watch has to say.
#[derive(Debug)]
pub enum What {
    /// Of the objects.
    Event(Box<Event<DynamicObject>>),
    /// The API server has no such kind.
    Absent,
    /// It can't be watched now; what is known stays.
    Trouble(String),
}

/// Makes watches list again.
#[derive(Debug, Clone)]
pub struct Restart(watch::Sender<()>);

impl Default for Restart {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl Restart {
    /// Every watch lists its kind again.
    pub fn now(&self) {
        self.0.send_replace(());
    }

    fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// The watch of one kind.
pub struct Watch {
    /// Talks to the API server.
    pub client: Client,
    /// What is watched.
    pub kind: Watched,
    /// Its place in the list of all.
    pub index: usize,
    /// Where events go.
    pub news: mpsc::Sender<News>,
    /// Told to list again.
    pub restart: Restart,
}

impl Watch {
    /// Runs until nobody listens any more.
    pub async fn run(self) {
        let mut restart = self.restart.subscribe();
        loop {
            let mut absent = true;
            for version in &self.kind.versions {
                restart.mark_unchanged();
                tokio::select! {
                    end = self.follow(version) => match end {
                        End::NoSuchVersion => continue,
                        End::NobodyListens => return,
                    },
                    _ = restart.changed() => {}
                }
                absent = false;
                break;
            }
            if absent {
                if self.tell(What::Absent).await.is_err() {
                    return;
                }
                // Whether it is a restart or the time that ends this doesn't matter.
                let _ = timeout(ABSENT, restart.changed()).await;
            }
        }
    }

    async fn follow(&self, version: &ApiResource) -> End {
        let mut stream = pin!(watcher(self.api(version), self.config()));
        let mut wait = FIRST;
        while let Some(event) = stream.next().await {
            let what = match event {
                Ok(event) => {
                    // A list that begins may still be refused.
                    if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
                        wait = FIRST;
                    }
                    What::Event(Box::new(event))
                }
                Err(error) if has_code(&error, 404) => return End::NoSuchVersion,
                // Where we were is too long ago: everything is listed again, and that is all.
                Err(error) if has_code(&error, 410) => continue,
                Err(error) => {
                    if self.tell(What::Trouble(self.explain(&error))).await.is_err() {
                        return End::NobodyListens;
                    }
                    // Different for each kind, so that not all come back in the same moment.
                    sleep(wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
                    wait = (wait * 2).min(LONGEST);
                    continue;
                }
            };
            if self.tell(what).await.is_err() {
                return End::NobodyListens;
            }
        }
        End::NobodyListens
    }

    fn api(&self, version: &ApiResource) -> Api<DynamicObject> {
        match &self.kind.place {
            Where::Everywhere => Api::all_with(self.client.clone(), version),
            Where::Object { namespace, .. } => Api::namespaced_with(self.client.clone(), namespace, version),
        }
    }

    fn config(&self) -> watcher::Config {
        match &self.kind.place {
            Where::Everywhere => super::config(),
            Where::Object { name, .. } => super::config().fields(&format!("metadata.name={name}")),
        }
    }

    /// In words that say what to do where that is known.
    fn explain(&self, error: &watcher::Error) -> String {
        let resource = self.kind.resource();
        match api_status(error) {
            Some(status) if status.code == 403 => {
                let scope = match &self.kind.place {
                    Where::Everywhere => "the ClusterRole".to_owned(),
                    Where::Object { namespace, .. } => format!("the Role in namespace {namespace}"),
                };
                format!(
                    "{scope} of the control plane lacks get, list and watch of {resource}: {}",
                    status.message
                )
            }
            _ => format!("{resource} can't be watched: {}", said(error)),
        }
    }

    async fn tell(&self, what: What) -> Result<(), mpsc::error::SendError<News>> {
        self.news.send(News { index: self.index, what }).await
    }
}

/// Why following one version ended.
enum End {
    NoSuchVersion,
    NobodyListens,
}

/// Lists kinds again that were absent when a definition of the mesh's APIs comes, goes or changes.
pub async fn follow_definitions(client: Client, restart: Restart) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let mut known = BTreeMap::new();
    let mut complete = false;
    let mut wait = FIRST;
    let mut stream = pin!(watcher(api, super::config()));
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Apply(definition) | Event::InitApply(definition))) => {
                let name = definition.name_any();
                if !name.ends_with(".istio.io") {
                    continue;
                }
                let generation = definition.metadata.generation;
                let changed = known.insert(name, generation) != Some(generation);
                if changed && complete {
                    restart.now();
                }
            }
            Ok(Some(Event::Delete(definition))) => {
                known.remove(&definition.name_any());
            }
            Ok(Some(Event::InitDone)) => {
                complete = true;
                wait = FIRST;
            }
            Ok(Some(Event::Init)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "definitions can't be watched");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST);
            }
        }
    }
}

fn api_status(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

fn has_code(error: &watcher::Error, code: u16) -> bool {
    api_status(error).is_some_and(|status| status.code == code)
}

/// What the API server says of a watch that failed, else the error with its causes.
pub fn said(error: &watcher::Error) -> String {
    match api_status(error) {
        Some(status) => format!("{} ({})", status.message, status.code),
        None => chain(error),
    }
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many say their cause themselves.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::fake::{Call, client, status};
    use crate::source::kubernetes::Scope;

    fn pods() -> Watched {
        let scope = Scope {
            namespace: "n".into(),
            revision: "default".into(),
            cluster_domain: "cluster.local".into(),
        };
        Watched::all(&scope).into_iter().find(|watched| watched.kind() == "Pod").expect("pods are watched")
    }

    /// What a watch says over an API server, in short, until it has said so much.
    async fn said(
        kind: Watched,
        wanted: usize,
        answer: impl FnMut(&Call) -> (u16, Vec<Value>) + Send + 'static,
    ) -> Vec<String> {
        let (news, mut arriving) = mpsc::channel(64);
        let task = Watch { client: client(answer), kind, index: 0, news, restart: Restart::default() };
        let task = tokio::spawn(task.run());
        let mut said = Vec::new();
        while said.len() < wanted {
            let news =
                timeout(Duration::from_secs(60), arriving.recv()).await.expect("in time").expect("a watch");
            said.push(match news.what {
                What::Absent => "absent".to_owned(),
                What::Trouble(text) => text,
                What::Event(event) => match *event {
                    Event::Init => "list".to_owned(),
                    Event::InitApply(object) => format!("listed {}", object.name_any()),
                    Event::InitDone => "done".to_owned(),
                    Event::Apply(object) => format!("applied {}", object.name_any()),
                    Event::Delete(object) => format!("deleted {}", object.name_any()),
                },
            });
        }
        task.abort();
        said
    }

    fn pod(name: &str, version: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "a", "resourceVersion": version } })
    }

    fn list(pods: &[Value]) -> (u16, Vec<Value>) {
        (
            200,
            vec![
                json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "10" }, "items": pods }),
            ],
        )
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_an_api_server_answers_the_watch_goes_on() {
        let mut number = 0;
        let said = said(pods(), 10, move |(_, path, _)| {
            number += 1;
            let watches = path.contains("watch=");
            match number {
                1 => (500, vec![status(500, "InternalError", "etcd is away")]),
                2 => (
                    403,
                    vec![status(403, "Forbidden", "pods is forbidden: User x cannot list resource pods")],
                ),
                _ if !watches => list(&[pod("one", "1")]),
                // A version that is too old: everything is listed again.
                4 => (
                    200,
                    vec![
                        json!({ "type": "ERROR", "object": status(410, "Expired", "too old resource version") }),
                    ],
                ),
                _ => (200, vec![json!({ "type": "ADDED", "object": pod("two", "11") })]),
            }
        });
        let said = said.await;
        assert!(said.iter().any(|line| line.contains("etcd is away (500)")), "{said:?}");
        let forbidden =
            said.iter().find(|line| line.contains("forbidden")).expect("the missing right is told");
        assert!(
            forbidden.starts_with("the ClusterRole of the control plane lacks get, list and watch of pods"),
            "{forbidden}"
        );
        let lists = said.iter().filter(|line| *line == "done").count();
        assert!(!said.iter().any(|line| line.contains("too old")), "{said:?}");
        assert!(lists >= 2 && said.contains(&"listed one".to_owned()), "{said:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_refuses_is_asked_more_and_more_slowly() {
        let began = tokio::time::Instant::now();
        // Each try says that a list begins, and why it doesn't.
        said(pods(), 16, |_| (500, vec![status(500, "InternalError", "etcd is away")])).await;
        let took = began.elapsed();
        assert!(took > Duration::from_secs(12), "eight tries in {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn versions_that_are_not_served_are_passed_over_and_a_missing_kind_is_empty() {
        let scope = Scope {
            namespace: "n".into(),
            revision: "default".into(),
            cluster_domain: "cluster.local".into(),
        };
        let rules = || {
            let kinds = Watched::all(&scope);
            kinds.into_iter().find(|watched| watched.kind() == "VirtualService").expect("rules are watched")
        };
        let missing = |_: &Call| {
            (404, vec![status(404, "NotFound", "the server could not find the requested resource")])
        };
        assert_eq!(said(rules(), 4, missing).await, ["list", "list", "list", "absent"]);
        let old = |(_, path, _): &Call| match path.contains("/v1beta1/") && !path.contains("watch=") {
            true => list(&[]),
            false if path.contains("/v1beta1/") => (200, vec![]),
            false => (404, vec![status(404, "NotFound", "no")]),
        };
        assert_eq!(said(rules(), 3, old).await, ["list", "list", "done"]);
    }
}
