//! networking.k8s.io/v1 Ingress and IngressClass, as far as we read them. Unknown fields are fine.

use serde::Deserialize;

use super::{Ignored, Metadata};

/// Ingress.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Ingress {
    pub metadata: Metadata,
    pub spec: IngressSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct IngressSpec {
    pub ingress_class_name: Option<String>,
    pub default_backend: Option<Backend>,
    pub rules: Vec<Rule>,
    pub tls: Vec<Tls>,
}

/// An entry of `rules`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Rule {
    pub host: String,
    pub http: Option<Http>,
}

/// Its `http`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Http {
    pub paths: Vec<HttpPath>,
}

/// An entry of `paths`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct HttpPath {
    #[serde(default)]
    pub path: String,
    #[serde(default)]
    pub path_type: PathType,
    pub backend: Backend,
}

/// `pathType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[allow(missing_docs)]
pub enum PathType {
    Exact,
    Prefix,
    #[default]
    ImplementationSpecific,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Backend {
    pub service: Option<BackendService>,
    pub resource: Option<Ignored>,
}

/// Its `service`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BackendService {
    pub name: String,
    pub port: BackendPort,
}

/// Its `port`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BackendPort {
    pub name: String,
    pub number: u32,
}

/// An entry of `tls`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Tls {
    pub hosts: Vec<String>,
    pub secret_name: String,
}

/// IngressClass.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct IngressClass {
    pub metadata: Metadata,
    pub spec: IngressClassSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct IngressClassSpec {
    pub controller: String,
}
