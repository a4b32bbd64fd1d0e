//! The file that a proxy starts with: an Envoy bootstrap in YAML or JSON (`osier-proxy --config FILE`).
//!
//! Read strictly: a field that Osier doesn't know is refused with the file, the field's path and the reason. Everything static
//! is compiled once here, so that a file that loads is a file that runs. The same value, made from the environment instead of a
//! file, starts a sidecar.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use osier_proto::Any;
use osier_proto::json::{self, JsonError};
use osier_proto::types::{
    bootstrap as xds,
    core::{self, config_source},
};
use serde_json::Value;

mod node;
mod server;

pub use node::Node;
pub use server::{XdsServer, XdsTarget, XdsTls};

use crate::compile::{self, At, Context, Invalid};
use crate::config::snapshot::Clusters;

/// What a proxy starts with.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap {
    /// Who this proxy is.
    pub node: Node,
    /// Address of the admin server, if the file names one.
    pub admin: Option<SocketAddr>,
    /// Clusters that are there from the start and stay.
    pub clusters: Vec<StaticResource>,
    /// Listeners that are there from the start and stay.
    pub listeners: Vec<StaticResource>,
    /// Where everything else comes from.
    pub dynamic: Option<Dynamic>,
    /// As `/config_dump` shows it.
    pub(crate) message: Any,
}

/// A resource of the file, encoded as xDS would send it.
#[derive(Debug, Clone)]
pub struct StaticResource {
    /// Resource name.
    pub name: String,
    /// The resource.
    pub(crate) body: Any,
}

/// What comes over xDS.
#[derive(Debug, Clone)]
pub struct Dynamic {
    /// From where.
    pub server: XdsServer,
    /// Subscribe to all listeners.
    pub listeners: bool,
    /// Subscribe to all clusters.
    pub clusters: bool,
    /// How long to wait for the first listeners at start; `None` is for ever.
    pub listener_timeout: Option<Duration>,
    /// How long to wait for the first clusters.
    pub cluster_timeout: Option<Duration>,
}

/// Why a file cannot be started with.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is neither YAML nor JSON.
    #[error("{}: {reason}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A field is not valid.
    #[error("{}: {}{reason}", file.display(), if field.is_empty() { String::new() } else { format!("{field}: ") })]
    Field {
        /// The file.
        file: PathBuf,
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads and checks a bootstrap file.
pub fn load(path: &Path) -> Result<Bootstrap, BootstrapError> {
    let file = || path.to_owned();
    let text =
        std::fs::read_to_string(path).map_err(|source| BootstrapError::Read { file: file(), source })?;
    let syntax = |reason: String| BootstrapError::Syntax { file: file(), reason };
    let value: Value = if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(&text).map_err(|e| syntax(e.to_string()))?
    } else {
        serde_saphyr::from_str(&text).map_err(|e| syntax(e.to_string()))?
    };
    from_value(&value).map_err(|e| BootstrapError::Field { file: file(), field: e.field, reason: e.reason })
}

impl Bootstrap {
    /// What a sidecar starts with: nothing but who it is and where its control plane is.
    pub fn for_workload(node: Node, pilot: XdsTarget, tls: Option<XdsTls>) -> Self {
        let dynamic = Dynamic {
            server: XdsServer::new(pilot, tls),
            listeners: true,
            clusters: true,
            // Without its configuration it must not be ready, however long that takes.
            listener_timeout: None,
            cluster_timeout: None,
        };
        let message = xds::Bootstrap { node: Some(node.to_message(&[])), ..xds::Bootstrap::default() };
        Self {
            node,
            admin: None,
            clusters: Vec::new(),
            listeners: Vec::new(),
            dynamic: Some(dynamic),
            message: Any::pack(&message),
        }
    }
}

fn from_value(value: &Value) -> Result<Bootstrap, Invalid> {
    let message: xds::Bootstrap =
        json::from_value(value).map_err(|JsonError { path, reason }| Invalid::new(path, reason))?;
    from_message(message)
}

fn from_message(message: xds::Bootstrap) -> Result<Bootstrap, Invalid> {
    let fixed = message.static_resources.clone().unwrap_or_default();
    let dynamic = match &message.dynamic_resources {
        Some(dynamic) => dynamic_resources(dynamic, &fixed.clusters).at("dynamic_resources")?,
        None => None,
    };
    let node = Node::from_message(message.node.as_ref());
    if dynamic.is_some() && (node.id.is_empty() || node.cluster.is_empty()) {
        return Err(Invalid::new("node", "needs `id` and `cluster` where xDS is used"));
    }
    let mut bootstrap = Bootstrap {
        node,
        admin: match message.admin.as_ref().and_then(|a| a.address.as_ref()) {
            Some(address) => Some(compile::value::ip_address(Some(address)).at("address").at("admin")?),
            None => None,
        },
        clusters: Vec::new(),
        listeners: Vec::new(),
        dynamic,
        message: Any::pack(&message),
    };
    static_resources(&fixed, &mut bootstrap).at("static_resources")?;
    Ok(bootstrap)
}

fn static_resources(
    fixed: &xds::bootstrap::StaticResources,
    bootstrap: &mut Bootstrap,
) -> Result<(), Invalid> {
    for (index, cluster) in fixed.clusters.iter().enumerate() {
        let only_for_xds = bootstrap.dynamic.as_ref().is_some_and(|d| d.server.cluster == cluster.name)
            && server::has_pipe(cluster);
        let check = || {
            unique(&bootstrap.clusters, &cluster.name)?;
            // Requests can't be sent to a pipe; the xDS client can.
            if !only_for_xds {
                compile::cluster::compile(&cluster.name, &Any::pack(cluster), &Default::default())
                    .map_err(compile::Rejected::into_invalid)?;
            }
            Ok(())
        };
        check().at_index("clusters", index)?;
        if !only_for_xds {
            let body = Any::pack(cluster);
            bootstrap.clusters.push(StaticResource { name: cluster.name.clone(), body });
        }
    }
    let clusters = Clusters::default();
    let cluster_exists = |name: &str| bootstrap.clusters.iter().any(|c| c.name == name);
    let context = Context {
        clusters: &clusters,
        secrets: &Default::default(),
        on_demand: None,
        counters: &Default::default(),
        cluster_exists: &cluster_exists,
    };
    let mut listeners: Vec<StaticResource> = Vec::new();
    for (index, listener) in fixed.listeners.iter().enumerate() {
        let mut listener = listener.clone();
        if listener.name.is_empty() {
            // Envoy makes a name up; ours is the same after each start.
            listener.name = format!("static-listener-{index}");
        }
        let body = Any::pack(&listener);
        let check = || {
            unique(&listeners, &listener.name)?;
            let compiled = compile::listener::compile(&listener.name, &body, context)
                .map_err(compile::Rejected::into_invalid)?;
            if bootstrap.dynamic.is_none() && !compiled.references.route_configs.is_empty() {
                let name = &compiled.references.route_configs[0].name;
                return Err(Invalid::new(
                    "",
                    format!("route table `{name}` needs `dynamic_resources.ads_config`"),
                ));
            }
            Ok(())
        };
        check().at_index("listeners", index)?;
        listeners.push(StaticResource { name: listener.name, body });
    }
    bootstrap.listeners = listeners;
    Ok(())
}

fn unique(known: &[StaticResource], name: &str) -> Result<(), Invalid> {
    match known.iter().any(|r| r.name == name) {
        true => Err(Invalid::new("name", format!("`{name}` is there twice"))),
        false => Ok(()),
    }
}

fn dynamic_resources(
    message: &xds::bootstrap::DynamicResources,
    fixed: &[osier_proto::types::cluster::Cluster],
) -> Result<Option<Dynamic>, Invalid> {
    let listeners = over_ads("lds_config", message.lds_config.as_ref())?;
    let clusters = over_ads("cds_config", message.cds_config.as_ref())?;
    let Some(ads) = &message.ads_config else {
        return match (listeners, clusters) {
            (None, None) => Ok(None),
            _ => Err(Invalid::new("ads_config", "is required by `lds_config` and `cds_config`")),
        };
    };
    Ok(Some(Dynamic {
        server: server::from_ads_config(ads, fixed).at("ads_config")?,
        listeners: listeners.is_some(),
        clusters: clusters.is_some(),
        listener_timeout: listeners.flatten(),
        cluster_timeout: clusters.flatten(),
    }))
}

/// How long to wait for a config source, if there is one; it must be the aggregated stream.
fn over_ads(field: &str, source: Option<&core::ConfigSource>) -> Result<Option<Option<Duration>>, Invalid> {
    let Some(source) = source else { return Ok(None) };
    if matches!(source.config_source_specifier, Some(config_source::ConfigSourceSpecifier::Self_(_))) {
        return Err(Invalid::new(field, "`self` has no meaning here: use `ads`"));
    }
    compile::value::aggregated(field, Some(source)).map(Some)
}

#[cfg(test)]
mod tests;
