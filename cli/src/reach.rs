//! How the mesh is asked: a pilot of `osier up` by its address, or the pilots and proxies of a cluster through its API server.
//!
//! Nothing needs a way to pods: the API server forwards to their ports, loopback included.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::join_all;
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use osier_core::registration::ADMIN_PORT;
use serde_json::Value;

use crate::client::{self, Answer};
use crate::cluster::{Cluster, ControlPlane, WHICH, said};
use crate::pods::{Name, runs};

/// Where `osier up` serves what it knows unless it is told otherwise.
const LOCAL: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), MONITORING_PORT);
/// Where a pilot of a cluster serves the same.
const MONITORING_PORT: u16 = 15014;
/// How long the kubelet has to say why a port can't be reached.
const REASON: Duration = Duration::from_millis(500);

/// Which mesh is asked.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "mesh")]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// Address of a pilot outside of a cluster. [default: 127.0.0.1:15014 if something listens there and no cluster is named]
    #[arg(long, env = "OSIER_PILOT_MONITORING_ADDRESS", value_name = "IP:PORT", help_heading = WHICH)]
    pilot_monitoring: Option<SocketAddr>,
}

/// A mesh that can be asked.
pub enum Mesh {
    /// One pilot, by its address; its proxies by theirs.
    Local(SocketAddr),
    /// Everything through an API server.
    Cluster {
        /// Talks to the API server.
        client: Client,
        /// Namespace of names without one.
        namespace: String,
        /// Which pilots.
        control_plane: ControlPlane,
    },
}

/// A pilot.
#[derive(Debug, Clone)]
pub struct Pilot {
    /// Its pod, or its address.
    pub name: String,
    /// Its revision, where it has one.
    pub revision: Option<String>,
    place: Place,
}

/// Where HTTP is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At an address.
    Address(SocketAddr),
    /// On a port of a pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port.
        port: u16,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Pod { namespace, name, port } => write!(f, "port {port} of pod {namespace}/{name}"),
        }
    }
}

impl Arguments {
    /// Finds out in which mesh a proxy is. One that is named by its address needs none.
    pub async fn of_proxy(&self, proxy: &str, namespace: Option<&str>) -> Result<Mesh> {
        match proxy.parse::<SocketAddr>() {
            Ok(_) => Ok(Mesh::Local(self.pilot_monitoring.unwrap_or(LOCAL))),
            Err(_) => self.mesh(namespace).await,
        }
    }

    /// Finds out which mesh is meant. `namespace` is the command's `--namespace`, which only a cluster has.
    pub async fn mesh(&self, namespace: Option<&str>) -> Result<Mesh> {
        let plane = &self.control_plane;
        let cluster_named = self.cluster.given()
            || plane.namespace.is_some()
            || plane.revision.is_some()
            || namespace.is_some();
        match self.pilot_monitoring {
            Some(address) if cluster_named => bail!(
                "--pilot-monitoring (or OSIER_PILOT_MONITORING_ADDRESS) names the pilot {address}, the other flags name a cluster: \
                 leave one of both out"
            ),
            Some(address) => return Ok(Mesh::Local(address)),
            None if !cluster_named && listens(LOCAL).await => return Ok(Mesh::Local(LOCAL)),
            None => {}
        }
        let client = self.cluster.client().await.with_context(|| match cluster_named {
            true => "the cluster can't be asked".to_owned(),
            false => format!(
                "there is no mesh to ask: nothing listens on {LOCAL} (`osier up` does; --pilot-monitoring names another address)"
            ),
        })?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace()).to_owned();
        Ok(Mesh::Cluster { client, namespace, control_plane: plane.clone() })
    }
}

async fn listens(address: SocketAddr) -> bool {
    let connecting = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(Duration::from_millis(300), connecting).await, Ok(Ok(_)))
}

impl Mesh {
    /// All pilots; never none.
    pub async fn pilots(&self) -> Result<Vec<Pilot>> {
        let (client, control_plane) = match self {
            Self::Local(address) => {
                let place = Place::Address(*address);
                return Ok(vec![Pilot { name: address.to_string(), revision: None, place }]);
            }
            Self::Cluster { client, control_plane, .. } => (client, control_plane),
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), control_plane.namespace());
        let selector = ListParams::default().labels(&control_plane.selector());
        let pods = api.list(&selector).await.map_err(said)?.items;
        let mut pilots: Vec<Pilot> = pods.iter().filter(|pod| runs(pod)).map(pilot).collect();
        if pilots.is_empty() {
            let which =
                control_plane.revision.as_ref().map(|r| format!(" of revision {r}")).unwrap_or_default();
            let namespace = control_plane.namespace();
            bail!(
                "no pilot{which} runs in namespace {namespace}: `osier install` puts one there, --istioNamespace names another namespace"
            );
        }
        pilots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pilots)
    }

    /// The same page of every pilot. Those that don't answer are told on standard error; that none does is an error.
    pub async fn of_pilots(&self, path: &str) -> Result<Vec<(Pilot, Value)>> {
        let pilots = self.pilots().await?;
        let pages = join_all(pilots.iter().map(|pilot| self.page(&pilot.place, path))).await;
        let mut answers = Vec::new();
        let mut failed = None;
        for (pilot, page) in pilots.into_iter().zip(pages) {
            match page {
                Ok(page) => answers.push((pilot, page)),
                Err(error) => {
                    if let Some((former, error)) = failed.replace((pilot, error)) {
                        warn(&former, &error);
                    }
                }
            }
        }
        match failed {
            Some((pilot, error)) if answers.is_empty() => Err(match self {
                Self::Local(address) => error.context(format!(
                    "pilot does not answer on {address}; `osier up` starts one, --pilot-monitoring names another address"
                )),
                Self::Cluster { .. } => error.context(format!("pilot {} does not answer", pilot.name)),
            }),
            Some((pilot, error)) => {
                warn(&pilot, &error);
                Ok(answers)
            }
            None => Ok(answers),
        }
    }

    /// Everything that pilots know of connected clients: `/debug/syncz` of each, with the pilot's name as `istiod`.
    pub async fn clients(&self) -> Result<Vec<Value>> {
        let mut clients = Vec::new();
        for (pilot, page) in self.of_pilots("/debug/syncz").await? {
            for mut client in page.as_array().cloned().unwrap_or_default() {
                client["istiod"] = pilot.name.as_str().into();
                clients.push(client);
            }
        }
        clients.sort_by_cached_key(|client| client["proxy"].as_str().unwrap_or_default().to_owned());
        Ok(clients)
    }

    /// Where the admin interface of a proxy is. Its name is a pod's, or what `osier proxy-status` shows, or an address.
    pub async fn admin(&self, name: &str) -> Result<Place> {
        if let Ok(address) = name.parse() {
            return Ok(Place::Address(address));
        }
        match self {
            Self::Local(_) => {
                let clients = self.clients().await?;
                let proxy = one_named(&clients, name)?;
                let address = address(proxy).context("pilot does not know the proxy's address")?;
                Ok(Place::Address(SocketAddr::new(address.parse()?, ADMIN_PORT)))
            }
            Self::Cluster { client, namespace, .. } => {
                let pod = Name::parse(name, namespace)?.pod(client).await?;
                Ok(place(&pod, ADMIN_PORT))
            }
        }
    }

    /// A page that is JSON.
    pub async fn page(&self, place: &Place, path: &str) -> Result<Value> {
        let answer = self.ask(place, Method::GET, path).await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} of {place} is not JSON"))
    }

    /// A page, whatever it is; any status but 200 is an error.
    pub async fn ask(&self, place: &Place, method: Method, path: &str) -> Result<Answer> {
        let answer = match (place, self) {
            (Place::Address(address), _) => {
                let stream = client::connect(&address.to_string()).await?;
                client::once(stream, method, path).await.with_context(|| format!("http://{address}{path}"))?
            }
            (Place::Pod { namespace, name, port }, Self::Cluster { client, .. }) => {
                through(client, namespace, name, *port, method, path)
                    .await
                    .with_context(|| format!("{place} can't be asked"))?
            }
            (Place::Pod { .. }, Self::Local(_)) => bail!("{place} can only be asked through its cluster"),
        };
        if answer.status != 200 {
            bail!("{path} of {place} answered {}: {}", answer.status, answer.body_text().trim());
        }
        Ok(answer)
    }
}

impl Pilot {
    /// One without a place.
    #[cfg(test)]
    pub fn for_tests(name: &str, revision: Option<&str>) -> Self {
        Self { name: name.into(), revision: revision.map(Into::into), place: Place::Address(LOCAL) }
    }

    /// Another port of it.
    pub fn at(&self, port: u16) -> Place {
        match &self.place {
            Place::Address(address) => Place::Address(SocketAddr::new(address.ip(), port)),
            Place::Pod { namespace, name, .. } => {
                Place::Pod { namespace: namespace.clone(), name: name.clone(), port }
            }
        }
    }
}

fn pilot(pod: &Pod) -> Pilot {
    Pilot {
        name: pod.name_any(),
        revision: pod.labels().get("istio.io/rev").cloned(),
        place: place(pod, MONITORING_PORT),
    }
}

fn place(pod: &Pod, port: u16) -> Place {
    Place::Pod { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any(), port }
}

fn warn(pilot: &Pilot, error: &anyhow::Error) {
    eprintln!("osier: pilot {} does not answer: {error:#}", pilot.name);
}

/// One exchange with a port of a pod, through the API server.
async fn through(
    client: &Client,
    namespace: &str,
    name: &str,
    port: u16,
    method: Method,
    path: &str,
) -> Result<Answer> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut forwarder = api.portforward(name, &[port]).await.map_err(forward_refused)?;
    let (stream, reason) = forwarder
        .take_stream(port)
        .zip(forwarder.take_error(port))
        .context("the API server forwards to another port than asked")?;
    let answer = client::once(stream, method, path).await;
    let answer = match answer {
        // The kubelet knows better why a stream ended.
        Err(error) => match tokio::time::timeout(REASON, reason).await {
            Ok(Some(reason)) => Err(anyhow::anyhow!("{}", reason.trim())),
            _ => Err(error),
        },
        done => done,
    };
    forwarder.abort();
    answer
}

/// Why the API server forwards nothing.
fn forward_refused(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(_) => said(error),
        other => anyhow::anyhow!(
            "the API server does not forward to the pod: {}",
            osier_pilot::source::kubernetes::chain(&other)
        ),
    }
}

/// Address of a proxy in pilot's status: the second part of its node id.
pub fn address(client: &Value) -> Option<&str> {
    client["osier"]["node"].as_str()?.split('~').nth(1)
}

/// The one client whose name is this, or begins so.
pub fn one_named<'a>(clients: &'a [Value], name: &str) -> Result<&'a Value> {
    let known = |client: &Value| client["proxy"].as_str().unwrap_or_default().to_owned();
    if let Some(exact) = clients.iter().find(|client| known(client) == name) {
        return Ok(exact);
    }
    let matching: Vec<&Value> = clients.iter().filter(|client| known(client).starts_with(name)).collect();
    match matching.as_slice() {
        [] => {
            bail!("no connected proxy has a name that begins with `{name}`; `osier proxy-status` lists them")
        }
        [proxy] => Ok(proxy),
        several => {
            let names: Vec<String> = several.iter().map(|client| known(client)).collect();
            bail!("`{name}` is the beginning of several names: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_beginning_of_a_name_is_enough_if_it_is_one() {
        let clients =
            [json!({"proxy": "web-1.shop"}), json!({"proxy": "web-10.shop"}), json!({"proxy": "db.shop"})];
        assert_eq!(one_named(&clients, "db").expect("one"), &clients[2]);
        assert_eq!(one_named(&clients, "web-1.shop").expect("exact"), &clients[0]);
        let several = one_named(&clients, "web").expect_err("two").to_string();
        assert!(several.contains("web-1.shop, web-10.shop"), "{several}");
        assert!(one_named(&clients, "nobody").is_err());
    }

    #[test]
    fn a_port_of_a_pilot() {
        assert_eq!(Pilot::for_tests("p", None).at(9876).to_string(), "127.0.0.1:9876");
        let pod = Place::Pod { namespace: "osier-system".into(), name: "p-1".into(), port: MONITORING_PORT };
        let pilot = Pilot { name: "p-1".into(), revision: None, place: pod };
        assert_eq!(pilot.at(9876).to_string(), "port 9876 of pod osier-system/p-1");
    }
}
