//! One document to one checked resource, with everything that there is to say about it.
//!
//! Kinds of ours are decoded strictly, Kubernetes' own leniently. Kinds of the mesh APIs that we do not support are refused by
//! name; all other kinds (Deployments and the like) mean nothing without Kubernetes and are left out with a notice.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use osier_core::host::{self, Host};
use serde::de::DeserializeOwned;

use super::decode::{DecodeError, closest, decode};
use super::mesh_config;
use super::yaml::{Node, Value};
use crate::model::{Coverage, Kind, Origin, Report, ResourceKey, SecurityPolicy, Severity};
use crate::store::check::{self, Checked, Context, Problem, Resource};
use crate::store::schema::{IstioObject, Metadata, ingress, kubernetes};
use crate::store::{LineOf, Outcome, Place};

/// Namespace of resources that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// The group of security policies.
const SECURITY: &str = "security.istio.io";

/// What follows from a security policy that can't be read.
const HOLDS_NAMESPACE: &str =
    "can't be read: everything that is sent to workloads of its namespace is refused";
const HOLDS_MESH: &str = "names no valid namespace: everything that is sent to any workload is refused";

/// One document of a file.
#[derive(Clone)]
pub struct Document {
    /// Which resource; `None` for documents that are none of ours, or that can't be told.
    pub key: Option<ResourceKey>,
    /// What became of it. Only with a key.
    pub outcome: Outcome,
    /// Where it is.
    pub place: Place,
    /// What there is to say.
    pub reports: Vec<Report>,
    /// It is broken so that nobody can tell which resource it is.
    pub unidentified: bool,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.key, self.place)
    }
}

/// When a resource without timestamp was first seen, in milliseconds since 1970.
pub trait FirstSeen {
    /// The time for this key; the first call decides.
    fn first_seen(&mut self, key: &ResourceKey) -> i64;
}

/// Reads documents of one file.
pub struct Reader<'a> {
    /// File, relative to the folder; `None` where an API server says it.
    pub file: Option<Arc<PathBuf>>,
    /// Domain of Kubernetes services.
    pub cluster_domain: &'a Arc<str>,
    /// Ages of what has none.
    pub ages: &'a mut dyn FirstSeen,
}

/// What a document says it is.
struct Header {
    group: String,
    version: String,
    kind: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
    line: u32,
}

/// A resource, or that there is nothing to use in it, and all problems.
struct Verdict {
    resource: Option<Resource>,
    problems: Vec<Problem>,
}

impl<T> Checked<T> {
    fn into_verdict(self, resource: impl FnOnce(T) -> Option<Resource>) -> Verdict {
        Verdict { resource: self.value.and_then(resource), problems: self.problems }
    }
}

impl From<check::security::Read> for Verdict {
    fn from(read: check::security::Read) -> Self {
        Self { resource: read.policy.map(Resource::Security), problems: read.problems }
    }
}

impl Reader<'_> {
    /// Reads one document; a list gives one for each of its items.
    pub fn read(&mut self, node: Node) -> Vec<Document> {
        let is_list = node.get("kind").and_then(Node::text).is_some_and(|kind| kind.ends_with("List"));
        let mut node = node;
        if is_list && let Value::Map(entries) = &mut node.value {
            let items = entries.iter_mut().find(|e| &*e.key == "items");
            if let Some(Value::Seq(items)) = items.map(|e| &mut e.node.value) {
                return std::mem::take(items).into_iter().flat_map(|item| self.read(item)).collect();
            }
        }
        vec![self.read_one(Arc::new(node))]
    }

    /// Reads a document that is no list.
    pub fn read_one(&mut self, node: Arc<Node>) -> Document {
        let header = match header(&node) {
            Ok(header) => header,
            Err(error) => {
                let kind = node.get("kind").and_then(Node::text).cloned().unwrap_or_else(|| "".into());
                let name = node.get("metadata").and_then(|m| m.get("name")).and_then(Node::text).cloned();
                let header = Header {
                    group: String::new(),
                    version: String::new(),
                    kind,
                    name: name.unwrap_or_else(|| "".into()),
                    namespace: "".into(),
                    line: node.line,
                };
                return self.without_header(&node, &header, error);
            }
        };
        let Some(kind) = kind_of(&header) else { return self.not_ours(&header) };
        if kind == Kind::Unsupported {
            let meant = closest(&header.kind, KINDS).filter(|kind| **kind != *header.kind);
            let message = match meant {
                Some(kind) => format!("there is no kind {}, did you mean {kind}?", header.kind),
                None => format!(
                    "the kind {} of {} is not supported yet and not applied",
                    header.kind, header.group
                ),
            };
            let mut document =
                self.without_key(&header, String::new(), header.line, message, Severity::Error);
            // The group of policies has no other kinds: whoever wrote it meant one of them.
            document.unidentified = meant.is_some() || header.group == SECURITY;
            return document;
        }
        self.of_kind(kind, &header, node)
    }

    fn of_kind(&mut self, kind: Kind, header: &Header, node: Arc<Node>) -> Document {
        let key = match kind {
            Kind::Namespace | Kind::Node | Kind::IngressClass => {
                ResourceKey::new(kind, "", header.name.clone())
            }
            // there is one mesh, wherever its ConfigMap lives
            Kind::MeshConfig => ResourceKey::new(kind, "", header.name.clone()),
            _ => ResourceKey::new(kind, header.namespace.clone(), header.name.clone()),
        };
        let metadata: Metadata = node.get("metadata").and_then(|m| decode(m).ok()).unwrap_or_default();
        let written =
            metadata.creation_timestamp.as_ref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let created = written.map_or_else(|| self.ages.first_seen(&key), jiff::Timestamp::as_millisecond);
        let context = Context::new(kind, &header.namespace, &header.name, created, self.cluster_domain);
        let (outcome, problems) = match served(header, &node).and_then(|()| resource(&context, &node)) {
            Ok(Verdict { resource, problems }) => {
                let refused = problems.iter().any(|p| p.severity == Severity::Error);
                let outcome = match resource {
                    Some(Resource::Security(policy)) if refused => Outcome::FailsClosed(policy),
                    _ if refused => Outcome::Refused { hosts: self.hosts_of(&context, &node) },
                    Some(resource) => Outcome::Applied(resource),
                    None => Outcome::Unused,
                };
                let at = |p: Problem| match kind {
                    Kind::MeshConfig => (mesh_config::line_of(&node, &p.field), p),
                    _ => (node.line_of(&p.field), p),
                };
                (outcome, problems.into_iter().map(at).collect::<Vec<_>>())
            }
            Err(error) => {
                let problem = |field, message| Problem { field, message, severity: Severity::Error };
                let mut problems = vec![(error.line, problem(error.path, error.message))];
                let outcome = if kind.is_security() {
                    problems.push((header.line, problem(String::new(), HOLDS_NAMESPACE.into())));
                    Outcome::FailsClosed(SecurityPolicy::unreadable(key.clone(), Coverage::Namespace))
                } else {
                    Outcome::Refused { hosts: self.hosts_of(&context, &node) }
                };
                (outcome, problems)
            }
        };
        let report = |(line, problem): (u32, Problem)| {
            self.report(header, problem.field, line, problem.message, problem.severity)
        };
        let reports = problems.into_iter().map(report).collect();
        // references to nothing are found later; only these have any, so only they keep their nodes
        let keeps_lines = kind == Kind::VirtualService;
        let origin = Origin { file: self.file.clone(), line: header.line };
        let lines = keeps_lines.then(|| Arc::new(move |field: &str| node.line_of(field)) as Arc<LineOf>);
        Document { key: Some(key), outcome, place: Place { origin, lines }, reports, unidentified: false }
    }

    /// Hosts that a refused resource would define.
    fn hosts_of(&self, context: &Context, node: &Node) -> Option<Vec<Host>> {
        let spec = node.get("spec");
        let text = |node: &Node| node.text().cloned();
        match context.key.kind {
            Kind::DestinationRule => {
                let host = spec.and_then(|s| s.get("host")).and_then(text)?;
                let mut check = check::Check::new(context);
                Some(vec![check.host(check::Path::Root("spec"), &host)?])
            }
            Kind::ServiceEntry => {
                let hosts = spec.and_then(|s| s.get("hosts"))?.items();
                Some(hosts.iter().filter_map(text).map(|h| Host::new(&h)).collect())
            }
            Kind::Service => {
                let (name, namespace) = (&context.key.name, &context.key.namespace);
                Some(vec![Host::new(&format!("{name}.{namespace}.svc.{}", self.cluster_domain))])
            }
            _ => Some(Vec::new()),
        }
    }

    /// A document that does not say what it is. A security policy fails closed all the same.
    fn without_header(&self, node: &Node, header: &Header, error: DecodeError) -> Document {
        let mut document = self.without_key(header, error.path, error.line, error.message, Severity::Error);
        document.unidentified = true;
        let group = node.get("apiVersion").and_then(Node::text);
        let ours = group.is_none_or(|group| group.starts_with("security.istio.io/"));
        let Some(kind) = security_kind(&header.kind).filter(|_| ours) else { return document };
        let namespace = node.get("metadata").and_then(|m| m.get("namespace"));
        let (namespace, covers, holds) = match namespace.filter(|n| n.value != Value::Null) {
            None => (DEFAULT_NAMESPACE.into(), Coverage::Namespace, HOLDS_NAMESPACE),
            Some(node) => match node.text().filter(|text| host::is_label(text)) {
                Some(text) => (text.clone(), Coverage::Namespace, HOLDS_NAMESPACE),
                None => ("".into(), Coverage::Mesh, HOLDS_MESH),
            },
        };
        let key = ResourceKey::new(kind, namespace, header.name.clone());
        document.reports.push(self.report(header, String::new(), header.line, holds.into(), Severity::Error));
        document.outcome = Outcome::FailsClosed(SecurityPolicy::unreadable(key.clone(), covers));
        document.key = Some(key);
        document
    }

    fn not_ours(&self, header: &Header) -> Document {
        let message = match &*header.kind {
            "ConfigMap" => "is left out: only the ConfigMap istio is read".to_owned(),
            kind => format!("is left out: a {kind} means nothing here"),
        };
        self.without_key(header, String::new(), header.line, message, Severity::Notice)
    }

    fn without_key(
        &self,
        header: &Header,
        field: String,
        line: u32,
        message: String,
        severity: Severity,
    ) -> Document {
        let origin = Origin { file: self.file.clone(), line: header.line };
        Document {
            key: None,
            outcome: Outcome::Unused,
            place: Place { origin, lines: None },
            reports: vec![self.report(header, field, line, message, severity)],
            unidentified: false,
        }
    }

    fn report(
        &self,
        header: &Header,
        field: String,
        line: u32,
        message: String,
        severity: Severity,
    ) -> Report {
        Report {
            file: self.file.clone(),
            line,
            kind: header.kind.clone(),
            namespace: header.namespace.clone(),
            name: header.name.clone(),
            field,
            message,
            severity,
        }
    }
}

/// `apiVersion`, `kind` and the name; the rest of `metadata` is read with the resource.
fn header(node: &Node) -> Result<Header, DecodeError> {
    let fail = |path: &str, line: u32, message: String| DecodeError { path: path.into(), line, message };
    if !matches!(node.value, Value::Map(_)) {
        return Err(fail("", node.line, format!("a resource must be a mapping, not {}", node.describe())));
    }
    let text = |parent: &Node, path: &str, key: &str| match parent.get(key) {
        Some(found) => match found.text() {
            Some(text) if !text.is_empty() => Ok(text.clone()),
            _ => Err(fail(path, found.line, format!("must be text, not {}", found.describe()))),
        },
        None => Err(fail(path, parent.line, "is required".into())),
    };
    let api_version = text(node, "apiVersion", "apiVersion")?;
    let kind = text(node, "kind", "kind")?;
    let Some(metadata) = node.get("metadata") else {
        return Err(fail("metadata.name", node.line, "is required".into()));
    };
    let name = text(metadata, "metadata.name", "name")?;
    let namespace = match metadata.get("namespace").map(|n| &n.value) {
        None | Some(Value::Null) => DEFAULT_NAMESPACE.into(),
        Some(_) => text(metadata, "metadata.namespace", "namespace")?,
    };
    for (path, key, text, dots) in
        [("metadata.name", "name", &name, true), ("metadata.namespace", "namespace", &namespace, false)]
    {
        if !host::is_object_name(text, dots) {
            let line = metadata.get(key).map_or(metadata.line, |n| n.line);
            return Err(fail(
                path,
                line,
                format!("{text:?} is no name: lower-case letters, digits and hyphens"),
            ));
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let (group, version) = (group.to_owned(), version.to_owned());
    Ok(Header { group, version, kind, name, namespace, line: node.line })
}

/// The versions of the APIs that are read. Istio's have one schema for all of theirs.
fn served(header: &Header, node: &Node) -> Result<(), DecodeError> {
    if security_kind(&header.kind).is_some() && header.group != SECURITY {
        return Err(DecodeError {
            path: "apiVersion".into(),
            line: node.line_of("apiVersion"),
            message: format!("{} is a kind of {SECURITY}/v1", header.kind),
        });
    }
    let versions: &[&str] = match &*header.group {
        "networking.istio.io" => &["v1", "v1beta1", "v1alpha3"],
        SECURITY => &["v1", "v1beta1"],
        _ => &["v1"],
    };
    if versions.contains(&&*header.version) {
        return Ok(());
    }
    Err(DecodeError {
        path: "apiVersion".into(),
        line: node.line_of("apiVersion"),
        message: format!("there is no version {} of it, only {}", header.version, versions.join(", ")),
    })
}

fn kind_of(header: &Header) -> Option<Kind> {
    let known = kind(&header.group, &header.kind, &header.name);
    match known {
        None | Some(Kind::Unsupported) if is_nearly_security(&header.group) => {
            security_kind(&header.kind).or(known)
        }
        _ => known,
    }
}

/// True for what somebody may have written for the group of security policies. What they protect must not open by a slip; other projects'
/// policies of the same names are theirs.
fn is_nearly_security(group: &str) -> bool {
    let group = group.to_ascii_lowercase();
    let of_istio = group.strip_suffix("istio.io").is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !group.contains('.') || of_istio || closest(&group, &[SECURITY]).is_some()
}

/// What we call a kind of this group, or one object of it; `None` for those that are none of our business.
pub fn kind(group: &str, kind: &str, name: &str) -> Option<Kind> {
    Some(match (group, kind) {
        ("", "Namespace") => Kind::Namespace,
        ("", "Node") => Kind::Node,
        ("", "Service") => Kind::Service,
        ("", "Pod") => Kind::Pod,
        // Of files. From an API server they come another way, and only those that are needed.
        ("", "Secret") => Kind::Secret,
        ("", "ConfigMap") if name == "istio" => Kind::MeshConfig,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("networking.istio.io", "VirtualService") => Kind::VirtualService,
        ("networking.istio.io", "DestinationRule") => Kind::DestinationRule,
        ("networking.istio.io", "ServiceEntry") => Kind::ServiceEntry,
        ("networking.istio.io", "WorkloadEntry") => Kind::WorkloadEntry,
        (SECURITY, kind) if security_kind(kind).is_some() => return security_kind(kind),
        ("gateway.networking.k8s.io", _) => Kind::Unsupported,
        ("networking.k8s.io", "Ingress") => Kind::Ingress,
        ("networking.k8s.io", "IngressClass") => Kind::IngressClass,
        (group, _) if group.ends_with(".istio.io") => Kind::Unsupported,
        _ => return None,
    })
}

/// Kinds of Istio and of the Gateway API, for those who mistype one.
const KINDS: &[&str] = &[
    "AuthorizationPolicy",
    "BackendTLSPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "Ingress",
    "PeerAuthentication",
    "ProxyConfig",
    "ReferenceGrant",
    "RequestAuthentication",
    "ServiceEntry",
    "Sidecar",
    "TCPRoute",
    "TLSRoute",
    "TrafficExtension",
    "Telemetry",
    "UDPRoute",
    "VirtualService",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
];

fn security_kind(kind: &str) -> Option<Kind> {
    Some(match kind {
        "AuthorizationPolicy" => Kind::AuthorizationPolicy,
        "PeerAuthentication" => Kind::PeerAuthentication,
        "RequestAuthentication" => Kind::RequestAuthentication,
        _ => return None,
    })
}

/// Decodes and checks one resource.
fn resource(context: &Context, node: &Node) -> Result<Verdict, DecodeError> {
    Ok(match context.key.kind {
        Kind::Namespace => {
            let object: kubernetes::Namespace = decode(node)?;
            Verdict { resource: Some(Resource::Namespace(object.metadata.labels.into())), problems: vec![] }
        }
        Kind::Node => {
            let object: kubernetes::Node = decode(node)?;
            let locality = check::kubernetes::node_locality(&object.metadata.labels.into());
            Verdict { resource: Some(Resource::Node(locality)), problems: vec![] }
        }
        Kind::Service => check::kubernetes::check_service(context, &decode(node)?)
            .into_verdict(|s| Some(Resource::Service(Box::new(s)))),
        Kind::EndpointSlice => {
            check::kubernetes::check_slice(context, &decode(node)?).into_verdict(|s| s.map(Resource::Slice))
        }
        Kind::Pod => check::kubernetes::check_pod(context, &decode(node)?)
            .into_verdict(|w| w.map(|w| Resource::Workload(Box::new(w)))),
        Kind::WorkloadEntry => {
            let object = istio(node)?;
            check::service_entry::check_workload(context, &object.metadata.labels.into(), &object.spec)
                .into_verdict(|w| Some(Resource::Workload(Box::new(w))))
        }
        Kind::ServiceEntry => {
            let object: IstioObject<_, _> = decode(node)?;
            check::service_entry::check(context, &object.metadata.labels.into(), &object.spec, &object.status)
                .into_verdict(|e| Some(Resource::Entry(e)))
        }
        Kind::VirtualService => check::virtual_service::check(context, &istio(node)?.spec)
            .into_verdict(|r| Some(Resource::Route(Arc::new(r)))),
        Kind::DestinationRule => check::destination_rule::check(context, &istio(node)?.spec)
            .into_verdict(|p| Some(Resource::Policy(Arc::new(p)))),
        Kind::Ingress => check::ingress::check(context, &decode(node)?)
            .into_verdict(|i| Some(Resource::Ingress(Arc::new(i)))),
        Kind::IngressClass => {
            let object: ingress::IngressClass = decode(node)?;
            let controller = object.spec.controller.into();
            Verdict { resource: Some(Resource::IngressClass(controller)), problems: vec![] }
        }
        Kind::AuthorizationPolicy => {
            let object = istio(node)?;
            check::authorization::check(context, &object.metadata, &object.spec).into()
        }
        Kind::PeerAuthentication => check::security::peer_authentication(context, &istio(node)?.spec).into(),
        Kind::RequestAuthentication => check::authentication::check(context, &istio(node)?.spec).into(),
        Kind::MeshConfig => {
            mesh_config::read(context, node)?.into_verdict(|m| Some(Resource::Mesh(Arc::new(m))))
        }
        Kind::Secret => check::secret::check(context, &decode(node)?)
            .into_verdict(|found| found.map(|found| Resource::Secret(Arc::new(found)))),
        Kind::Unsupported => Verdict { resource: None, problems: vec![] },
    })
}

fn istio<S: DeserializeOwned>(node: &Node) -> Result<IstioObject<S>, DecodeError> {
    decode(node)
}
