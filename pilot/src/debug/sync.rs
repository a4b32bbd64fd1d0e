//! One line of `/debug/syncz`.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use crate::r#gen::key::ResourceType;
use crate::xds::status::ConnectionStatus;

/// What is known of a connection: istiod's keys, and ours under `osier`.
pub(super) fn page(connection: &ConnectionStatus) -> Value {
    let mut page = Map::new();
    page.insert("proxy".into(), json!(short_name(&connection.node)));
    page.insert("proxy_type".into(), json!(connection.node.split('~').next().unwrap_or_default()));
    page.insert("istio_version".into(), json!(connection.version));
    page.insert("cluster_id".into(), json!(connection.cluster));
    let mut types = Map::new();
    for kind in ResourceType::ALL {
        let word = word(kind);
        let status = connection.status(kind).unwrap_or_default();
        page.insert(format!("{word}_sent"), json!(status.nonce_sent.unwrap_or_default()));
        page.insert(format!("{word}_acked"), json!(status.nonce_acknowledged.unwrap_or_default()));
        let mut of_type = json!({
            "state": connection.state(kind),
            "wildcard": status.wildcard,
            "names": status.names,
            "version_sent": status.version_sent,
            "version_acked": status.version_acknowledged,
            "pending": status.pending,
        });
        if let Some(refusal) = status.refusal {
            of_type["error"] = json!(refusal.message);
        }
        types.insert(word.into(), of_type);
    }
    let since = connection.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.insert(
        "osier".into(),
        json!({
            "node": connection.node,
            "peer": connection.peer,
            "user_agent": connection.user_agent,
            "protocol": if connection.incremental { "delta" } else { "sotw" },
            "on_demand": connection.on_demand,
            "connected_at": since.as_secs(),
            "types": types,
        }),
    );
    Value::Object(page)
}

/// `name.namespace` of a node id.
fn short_name(node: &str) -> &str {
    node.split('~').nth(2).unwrap_or(node)
}

fn word(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "cluster",
        ResourceType::Endpoints => "endpoint",
        ResourceType::Listener => "listener",
        ResourceType::Routes => "route",
        ResourceType::Secret => "secret",
        ResourceType::VirtualHost => "virtual_host",
        ResourceType::NameTable => "name_table",
    }
}
