//! The whole mesh, read once from the API server with pilot's own code; and what the running pilots say of the configuration.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use osier_pilot::model::{DEFAULT_CLUSTER_DOMAIN, Interception, ProxyKind, ProxyView, ResourceKey, Severity};
use osier_pilot::snapshot::MeshSnapshot;
use osier_pilot::source::kubernetes::{Scope, follow};
use osier_pilot::store::State;
use osier_pilot::store::writer::{Outputs, Parts, Status, Writer};
use serde_json::Value;
use tokio::sync::watch;

use super::refused::{self, Refused};
use crate::cluster::ControlPlane;
use crate::reach::Mesh;

/// What is described from.
pub struct View {
    /// The mesh as this program's version of pilot understands it.
    pub snapshot: Arc<MeshSnapshot>,
    /// Sentences about resources that are in force.
    pub remarks: Vec<Remark>,
    /// What isn't in force as it is written, with the hosts that it is about.
    pub refused: Vec<Refused>,
    /// Proxies that are connected, as `NAME.NAMESPACE`; `None` where no pilot can be asked.
    pub connected: Option<Vec<String>>,
}

/// A sentence about a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Which.
    pub key: (String, String, String),
    /// What.
    pub text: String,
}

/// What is known of configuration that is not as it should be.
pub struct Judgement {
    /// How each resource fares.
    pub states: Vec<(ResourceKey, State)>,
    /// Sentences, those about refusals among them.
    pub reports: Vec<(Remark, Severity)>,
}

impl View {
    /// Reads the mesh. `revision` is that of the pod, where one is described.
    pub async fn read(client: &Client, plane: &ControlPlane, revision: Option<&str>) -> Result<Self> {
        let revision = plane.revision.as_deref().or(revision).unwrap_or("default");
        let scope = Scope {
            namespace: plane.namespace().to_owned(),
            revision: revision.to_owned(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.into(),
        };
        let Parts { writer, feed, registrations: _registrations, outputs, .. } =
            Writer::new(scope.cluster_domain.clone());
        let Outputs { snapshot, status, .. } = outputs;
        let writing = tokio::spawn(writer.wait_for_pods().run());
        let read = tokio::select! {
            follower = follow(client.clone(), scope, feed) => Ok(follower),
            trouble = trouble(status.clone()) => Err(trouble),
        };
        writing.abort();
        let _follower = match read {
            Ok(follower) => follower,
            Err(trouble) => {
                bail!("the mesh can't be read, which takes what a control plane may read: {trouble}")
            }
        };
        let snapshot = snapshot.borrow().clone();
        let own = judged_here(&status.borrow());
        let mesh = Mesh::Cluster {
            client: client.clone(),
            namespace: client.default_namespace().to_owned(),
            control_plane: ControlPlane { revision: Some(revision.to_owned()), ..plane.clone() },
        };
        let (judgement, connected) = match pilots(&mesh).await {
            Ok(said) => said,
            Err(error) => {
                eprintln!(
                    "osier: {error:#}; what is refused is told by this program, version {}",
                    env!("CARGO_PKG_VERSION")
                );
                (own, None)
            }
        };
        let refused = refused::with_hosts(client, &judgement).await;
        Ok(Self { remarks: judgement.remarks(), snapshot, refused, connected })
    }

    /// What clients of a namespace see, whoever they are.
    pub fn seen_from(namespace: &Arc<str>) -> ProxyView {
        ProxyView {
            kind: ProxyKind::Envoy,
            gateway: false,
            mutual_tls: false,
            namespace: namespace.clone(),
            name: "".into(),
            labels: Default::default(),
            addresses: Box::default(),
            interception: Interception::Redirect,
            node: "".into(),
            dns_capture: false,
        }
    }

    /// What is there to say about a resource that is in force.
    pub fn remarks_on<'a>(&'a self, key: &'a ResourceKey) -> impl Iterator<Item = &'a str> {
        let is = move |remark: &&Remark| remark.key == named(key);
        self.remarks.iter().filter(is).map(|remark| &*remark.text)
    }
}

impl Judgement {
    /// Warnings; what is refused has its own place.
    pub fn remarks(&self) -> Vec<Remark> {
        let warnings = self.reports.iter().filter(|(_, severity)| *severity == Severity::Warning);
        warnings.map(|(remark, _)| remark.clone()).collect()
    }
}

/// Kind, namespace and name as reports have them.
pub fn named(key: &ResourceKey) -> (String, String, String) {
    (format!("{:?}", key.kind), key.namespace.to_string(), key.name.to_string())
}

/// What keeps the source from reading, as soon as there is something.
async fn trouble(mut status: watch::Receiver<Arc<Status>>) -> String {
    loop {
        let of_kinds = |status: &Status| {
            let trouble = status.reports.iter().find(|r| r.name.is_empty() && r.severity == Severity::Error);
            trouble.map(|report| report.message.clone())
        };
        if let Some(message) = of_kinds(&status.borrow_and_update()) {
            return message;
        }
        if status.changed().await.is_err() {
            // The writer is gone; the other branch ends as well.
            return std::future::pending().await;
        }
    }
}

/// What this program thinks itself.
pub fn judged_here(status: &Status) -> Judgement {
    let reports = status.reports.iter().map(|report| {
        let key = (report.kind.to_string(), report.namespace.to_string(), report.name.to_string());
        (Remark { key, text: sentence(&report.field, &report.message) }, report.severity)
    });
    Judgement {
        states: status.resources.iter().map(|resource| (resource.key.clone(), resource.state)).collect(),
        reports: reports.collect(),
    }
}

fn sentence(field: &str, message: &str) -> String {
    if field.is_empty() { message.to_owned() } else { format!("{field}: {message}") }
}

/// What the running pilots think, and who is connected to them. All replicas read the same, so one judgement is enough.
async fn pilots(mesh: &Mesh) -> Result<(Judgement, Option<Vec<String>>)> {
    let pages = mesh.of_pilots("/debug/configz").await?;
    let (_, page) = pages.into_iter().next().context("no pilot answers")?;
    let clients = mesh.clients().await?;
    let connected = clients.iter().filter_map(|client| client["proxy"].as_str().map(str::to_owned)).collect();
    Ok((judged_by_pilot(&page), Some(connected)))
}

/// A page of `/debug/configz`.
fn judged_by_pilot(page: &Value) -> Judgement {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let state = |resource: &Value| {
        let key = &resource["key"];
        let kind = serde_json::from_value(key["kind"].clone()).ok()?;
        let state = serde_json::from_value(resource["state"].clone()).ok()?;
        Some((ResourceKey::new(kind, key["namespace"].as_str()?, key["name"].as_str()?), state))
    };
    let report = |report: &Value| {
        let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
        let severity = serde_json::from_value(report["severity"].clone()).ok()?;
        let key = (text("kind"), text("namespace"), text("name"));
        Some((Remark { key, text: sentence(&text("field"), &text("message")) }, severity))
    };
    Judgement {
        states: list(&page["resources"]).iter().filter_map(state).collect(),
        reports: list(&page["reports"]).iter().filter_map(report).collect(),
    }
}
