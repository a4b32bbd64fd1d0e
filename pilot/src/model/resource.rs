//! Identity, age and origin of a resource, and what we have to say about it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Kinds of resources that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Kubernetes Namespace.
    Namespace,
    /// Kubernetes Node.
    Node,
    /// Kubernetes Service.
    Service,
    /// Kubernetes EndpointSlice.
    EndpointSlice,
    /// Kubernetes Pod.
    Pod,
    /// Istio WorkloadEntry.
    WorkloadEntry,
    /// Istio ServiceEntry.
    ServiceEntry,
    /// Istio VirtualService.
    VirtualService,
    /// Istio DestinationRule.
    DestinationRule,
    /// Kubernetes Secret with certificates.
    Secret,
    /// Kubernetes Ingress.
    Ingress,
    /// Kubernetes IngressClass.
    IngressClass,
    /// Istio AuthorizationPolicy.
    AuthorizationPolicy,
    /// Istio PeerAuthentication.
    PeerAuthentication,
    /// Istio RequestAuthentication.
    RequestAuthentication,
    /// The mesh configuration: key `mesh` of the ConfigMap `istio`.
    MeshConfig,
    /// A kind of the mesh APIs that we do not support. Never applied, only reported.
    Unsupported,
}

impl Kind {
    /// True for what says who may send: where it is not understood, nobody may.
    pub fn is_security(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication)
    }
}

/// Name of a resource within everything that we know.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ResourceKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty where the kind has none.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ResourceKey {
    /// A key.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() {
            write!(f, "{kind:?} {name}")
        } else {
            write!(f, "{kind:?} {namespace}/{name}")
        }
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Order of resources wherever "the oldest" is asked for: creation time, then name, then namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Age {
    /// Milliseconds since 1970.
    pub created: i64,
    /// Name of the resource.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

/// Where a resource came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// File, relative to the folder; `None` for live registrations.
    pub file: Option<Arc<PathBuf>>,
    /// Line of the document's start, from 1; 0 if unknown.
    pub line: u32,
}

/// How bad a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    Notice,
    /// Applied, but probably not what was meant.
    Warning,
    /// Not applied; the last good version stays where there is one.
    Error,
}

/// One sentence about one resource (or one file).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Report {
    /// File, relative to the folder; `None` for live registrations.
    pub file: Option<Arc<PathBuf>>,
    /// Line from 1; 0 if unknown.
    pub line: u32,
    /// Kind as written; empty where the file could not be read as YAML.
    pub kind: Arc<str>,
    /// Namespace; empty where there is none.
    pub namespace: Arc<str>,
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Path of the field, e.g. `spec.http[0].route[1].weight`; empty for the whole resource.
    pub field: String,
    /// What is wrong, lower-case, without full stop.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
            }
            f.write_str(": ")?;
        }
        if !self.kind.is_empty() {
            f.write_str(&self.kind)?;
            match (self.namespace.is_empty(), self.name.is_empty()) {
                (_, true) => {}
                // Names that are none are told, too, and must not break the line.
                (true, false) => write!(f, " {}", self.name.escape_debug())?,
                (false, false) => {
                    write!(f, " {}/{}", self.namespace.escape_debug(), self.name.escape_debug())?;
                }
            }
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
