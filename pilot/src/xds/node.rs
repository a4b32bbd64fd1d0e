//! Who is at the other end of a stream: Istio's node id and metadata, read once.
//!
//! Ids have four parts, `TYPE~IP~NAME.NAMESPACE~DNSDOMAIN`. Metadata come from environment variables, so that booleans are text
//! and lists are joined by commas; unknown keys are ignored. Only parsed fields are kept, not the message.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use osier_core::labels::Labels;
use osier_core::registration::{EXPLICIT_PROXY_PORT, METADATA_KEY, Registration};
use osier_proto::schema;
use osier_proto::types::core::Node;
use osier_proto::types::core::node::UserAgentVersionType;
use prost_types::{Struct, Value, value::Kind};

use crate::r#gen::key::View;
use crate::model::{Interception, ProxyKind, ProxyView};

/// What was read of a node.
#[derive(Debug, Clone)]
pub struct Client {
    /// The whole id.
    pub id: Arc<str>,
    /// All that resources may depend on.
    pub view: Arc<View>,
    /// What the program calls itself, for status.
    pub user_agent: String,
    /// Version that the proxy announces, for status.
    pub version: String,
    /// Cluster that it says it is in, for status; may be empty.
    pub cluster: String,
    /// Service account that it says it has.
    pub service_account: Option<String>,
    /// Workload that the client registers for as long as its stream lives.
    pub registration: Option<Registration>,
}

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The first message had none.
    #[error("the first message of a stream must carry node.id")]
    Missing,
    /// It would fill the logs.
    #[error("node id is longer than {MAX_ID} bytes")]
    TooLong,
    /// Not four parts.
    #[error("node id `{0}` is not TYPE~IP~NAME.NAMESPACE~DNSDOMAIN")]
    Shape(String),
    /// Not a kind of proxy that we serve.
    #[error("node id `{0}`: type `{1}` is not served, only `sidecar` and `router` are")]
    Role(String, String),
    /// Nobody knows where it is.
    #[error("node id `{0}` has no valid IP address, and neither has the metadata INSTANCE_IPS")]
    Address(String),
    /// It wants to be registered, but can't be read.
    #[error("node id `{id}`: metadata {METADATA_KEY}: {reason}")]
    Registration {
        /// The id.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

/// Longest node id.
const MAX_ID: usize = 1024;

impl Client {
    /// Reads a node.
    pub fn parse(node: Option<&Node>) -> Result<Self, NodeError> {
        let node = node.filter(|n| !n.id.is_empty()).ok_or(NodeError::Missing)?;
        let id = &node.id;
        if id.len() > MAX_ID {
            return Err(NodeError::TooLong);
        }
        let parts: Vec<&str> = id.split('~').collect();
        let [role, address, name, _domain] = parts[..] else { return Err(NodeError::Shape(id.clone())) };
        let gateway = role == "router";
        if !gateway && role != "sidecar" {
            return Err(NodeError::Role(id.clone(), role.to_string()));
        }
        let metadata = Fields(node.metadata.as_ref());
        let addresses = addresses(&metadata, address).ok_or_else(|| NodeError::Address(id.clone()))?;
        let (name, id_namespace) = name.rsplit_once('.').unwrap_or((name, "default"));
        let mut view = View {
            proxy: ProxyView {
                kind: kind(node, &metadata),
                gateway,
                mutual_tls: false,
                namespace: metadata.text("NAMESPACE").unwrap_or_else(|| id_namespace.to_string()).into(),
                name: name.into(),
                labels: Labels::from(metadata.map("LABELS")),
                interception: if gateway { Interception::None } else { interception(&metadata) },
                node: metadata.text("NODE_NAME").unwrap_or_default().into(),
                addresses: addresses.into(),
                dns_capture: metadata.flag("DNS_CAPTURE"),
            },
            schema: schema::announced_version(node),
            secrets_of: None,
            http10: metadata.flag("HTTP10"),
            ipv6: false,
            explicit_proxy: None,
            app_port: None,
        };
        let registration = registration(id, &metadata)?;
        if let Some(registration) = &registration {
            apply(&mut view, registration);
        }
        view.ipv6 = view.proxy.addresses.iter().any(IpAddr::is_ipv6);
        if view.proxy.interception == Interception::None && !gateway {
            view.explicit_proxy = Some(SocketAddr::new(view.proxy.addresses[0], EXPLICIT_PROXY_PORT));
        }
        Ok(Self {
            id: id.as_str().into(),
            view: Arc::new(view),
            user_agent: node.user_agent_name.clone(),
            service_account: metadata.text("SERVICE_ACCOUNT").filter(|account| !account.is_empty()),
            cluster: metadata.text("CLUSTER_ID").unwrap_or_default(),
            version: metadata.text("ISTIO_VERSION").or_else(|| user_agent_version(node)).unwrap_or_default(),
            registration,
        })
    }
}

/// What the program says of itself where no metadata does.
fn user_agent_version(node: &Node) -> Option<String> {
    let UserAgentVersionType::UserAgentVersion(version) = node.user_agent_version_type.as_ref()?;
    Some(version.clone())
}

/// A registered workload is what it says in its registration, whatever the rest of the metadata says.
fn apply(view: &mut View, registration: &Registration) {
    view.proxy.namespace = registration.namespace.as_str().into();
    view.proxy.name = registration.name.as_str().into();
    view.proxy.labels = Labels::from(registration.all_labels());
    view.proxy.addresses = [registration.address].into();
    view.proxy.interception = Interception::None;
    view.app_port = registration.app_port;
}

fn registration(id: &str, metadata: &Fields<'_>) -> Result<Option<Registration>, NodeError> {
    let Some(text) = metadata.text(METADATA_KEY) else { return Ok(None) };
    let wrong = |reason| NodeError::Registration { id: id.to_string(), reason };
    let registration: Registration = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    registration.check().map_err(wrong)?;
    Ok(Some(registration))
}

fn addresses(metadata: &Fields<'_>, from_id: &str) -> Option<Vec<IpAddr>> {
    let listed = metadata.text("INSTANCE_IPS").unwrap_or_default();
    let mut found: Vec<IpAddr> = listed.split(',').filter_map(|ip| ip.trim().parse().ok()).collect();
    if found.is_empty() {
        found.extend(from_id.parse::<IpAddr>().ok());
    }
    (!found.is_empty()).then_some(found)
}

fn interception(metadata: &Fields<'_>) -> Interception {
    match metadata.text("INTERCEPTION_MODE").as_deref() {
        Some("TPROXY") => Interception::Tproxy,
        Some("NONE") => Interception::None,
        _ => Interception::Redirect,
    }
}

/// On demand needs both: the feature, and a schema, which only Osier's proxy announces.
fn kind(node: &Node, metadata: &Fields<'_>) -> ProxyKind {
    if schema::announced_version(node).is_some() {
        return if schema::announces(node, schema::FEATURE_ON_DEMAND) {
            ProxyKind::OnDemand
        } else {
            ProxyKind::Envoy
        };
    }
    let grpc = metadata.text("GENERATOR").as_deref() == Some("grpc")
        || node.user_agent_name.to_ascii_lowercase().starts_with("grpc");
    if grpc { ProxyKind::Grpc } else { ProxyKind::Envoy }
}

/// Metadata, read leniently.
struct Fields<'a>(Option<&'a Struct>);

impl Fields<'_> {
    fn value(&self, key: &str) -> Option<&Kind> {
        self.0?.fields.get(key)?.kind.as_ref()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.value(key).and_then(as_text).filter(|t| !t.is_empty())
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.text(key).as_deref(), Some("1" | "t" | "true" | "TRUE" | "True"))
    }

    fn map(&self, key: &str) -> BTreeMap<String, String> {
        let Some(Kind::StructValue(object)) = self.value(key) else { return BTreeMap::new() };
        object.fields.iter().filter_map(|(key, value)| Some((key.clone(), value_text(value)?))).collect()
    }
}

fn value_text(value: &Value) -> Option<String> {
    value.kind.as_ref().and_then(as_text)
}

fn as_text(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(flag) => Some(flag.to_string()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node with metadata of texts.
    pub(crate) fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let fields = metadata
            .iter()
            .map(|(key, value)| (key.to_string(), Value { kind: Some(Kind::StringValue(value.to_string())) }))
            .collect();
        Node { id: id.into(), metadata: Some(Struct { fields }), ..Default::default() }
    }

    fn parse(node: &Node) -> Client {
        Client::parse(Some(node)).unwrap()
    }

    #[test]
    fn reads_istios_id_and_metadata() {
        let mut n = node(
            "sidecar~10.1.2.3~reviews-v1-abc.default~default.svc.cluster.local",
            &[
                ("NAMESPACE", "prod"),
                ("INSTANCE_IPS", "10.1.2.3, fd00::3,x"),
                ("HTTP10", "true"),
                ("INTERCEPTION_MODE", "NONE"),
                ("ISTIO_VERSION", "1.27.0"),
            ],
        );
        let labels = Struct {
            fields: [("app".to_string(), Value { kind: Some(Kind::StringValue("reviews".into())) })].into(),
        };
        let labels = Value { kind: Some(Kind::StructValue(labels)) };
        n.metadata.as_mut().unwrap().fields.insert("LABELS".into(), labels);
        let c = parse(&n);
        let view = &c.view;
        assert_eq!((&*view.proxy.name, &*view.proxy.namespace), ("reviews-v1-abc", "prod"));
        assert_eq!(view.proxy.addresses.len(), 2);
        assert_eq!(view.proxy.labels.get("app"), Some("reviews"));
        assert_eq!(view.proxy.interception, Interception::None);
        assert_eq!(view.proxy.kind, ProxyKind::Envoy);
        assert_eq!(view.explicit_proxy, Some("10.1.2.3:15007".parse().unwrap()));
        assert!(view.http10 && view.ipv6);
    }

    #[test]
    fn the_namespace_of_the_id_is_the_fallback() {
        let c = parse(&node("sidecar~10.1.2.3~a.b.c~x", &[]));
        assert_eq!((&*c.view.proxy.name, &*c.view.proxy.namespace), ("a.b", "c"));
    }

    #[test]
    fn refusals_say_why() {
        let cases = [
            (Node::default(), "must carry node.id"),
            (node("envoy-1", &[]), "is not TYPE~IP"),
            (node("ztunnel~10.0.0.1~a.b~c", &[]), "type `ztunnel` is not served"),
            (node("sidecar~~a.b~c", &[]), "no valid IP address"),
            (node("sidecar~x~a.b~c", &[("INSTANCE_IPS", "y")]), "no valid IP address"),
            (node("sidecar~10.0.0.1~a.b~c", &[(METADATA_KEY, "{}")]), "OSIER_REGISTER: missing field `name`"),
        ];
        for (n, says) in cases {
            let error = Client::parse(Some(&n)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(Client::parse(None).unwrap_err(), NodeError::Missing);
    }

    #[test]
    fn a_gateway_captures_nothing_and_has_no_explicit_proxy() {
        let c = parse(&node("router~10.1.2.3~edge.istio-system~x", &[("INTERCEPTION_MODE", "REDIRECT")]));
        assert!(c.view.proxy.gateway && c.view.explicit_proxy.is_none());
        assert_eq!(c.view.proxy.interception, Interception::None);
        assert!(!parse(&node("sidecar~10.1.2.3~a.b~x", &[])).view.proxy.gateway);
    }

    #[test]
    fn kinds_of_clients() {
        let id = "sidecar~10.0.0.1~a.b~c";
        let kind = |n: &Node| parse(n).view.proxy.kind;
        assert_eq!(kind(&node(id, &[("GENERATOR", "grpc")])), ProxyKind::Grpc);
        let mut python = node(id, &[]);
        python.user_agent_name = "gRPC C-core linux".into();
        assert_eq!(kind(&python), ProxyKind::Grpc);
        let mut osier = node(id, &[(schema::VERSION_METADATA_KEY, "1")]);
        assert_eq!((kind(&osier), parse(&osier).view.schema), (ProxyKind::Envoy, Some(1)));
        osier.client_features.push(schema::FEATURE_ON_DEMAND.into());
        assert_eq!(kind(&osier), ProxyKind::OnDemand);
        let mut stranger = node(id, &[]);
        stranger.client_features.push(schema::FEATURE_ON_DEMAND.into());
        assert_eq!(kind(&stranger), ProxyKind::Envoy, "the feature alone, without a schema, is not ours");
    }

    #[test]
    fn a_registered_workload_is_what_it_says() {
        let registration = Registration {
            name: "web-1".into(),
            namespace: "shop".into(),
            service: "web".into(),
            version: Some("v2".into()),
            labels: BTreeMap::new(),
            address: [127, 64, 0, 9].into(),
            service_account: None,
            app_port: Some(8080),
        };
        let json = serde_json::to_string(&registration).unwrap();
        let c = parse(&node("sidecar~10.0.0.1~a.b~c", &[(METADATA_KEY, &json)]));
        assert_eq!(&*c.view.proxy.namespace, "shop");
        assert_eq!(c.view.proxy.labels.get("version"), Some("v2"));
        assert_eq!(c.view.explicit_proxy, Some("127.64.0.9:15007".parse().unwrap()));
        assert_eq!((c.view.app_port, c.registration), (Some(8080), Some(registration)));
    }
}
