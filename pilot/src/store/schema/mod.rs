//! The resources as people write them.
//!
//! Istio's kinds are strict (`deny_unknown_fields`): every field of the API is here, as itself, as [`Unsupported`] or as
//! [`Ignored`]; anything else is a typo. Kubernetes' own kinds list only what we read, since an API server may add fields at will.
//! `check` turns these into the model.

pub mod authentication;
pub mod authorization;
pub mod destination_rule;
pub mod ingress;
pub mod kubernetes;
pub mod mesh;
pub mod security;
pub mod service_entry;
pub mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// A field that the API has and Osier does not support yet. Any value is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {}

impl Unsupported {
    /// How a deserializer knows this type, which it may be asked for as a unit struct.
    pub const NAME: &'static str = "Unsupported";
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Refuse;
        impl de::Visitor<'_> for Refuse {
            type Value = Unsupported;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("nothing")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Unsupported, E> {
                Err(E::custom("is not supported yet"))
            }
        }
        deserializer.deserialize_unit_struct(Self::NAME, Refuse)
    }
}

/// A field that the API has and that changes nothing for traffic. Any value is taken and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// `metadata`, as far as we read it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; empty means `default` for kinds that have one.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339.
    pub creation_timestamp: Option<String>,
    /// RFC 3339, set while it is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Who made it.
    pub owner_references: Vec<OwnerReference>,
}

/// One of `ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Kind, e.g. `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// The owner that controls it.
    pub controller: bool,
}

/// A resource of Istio's: nothing but these top-level fields.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IstioObject<S, T: Default = Ignored> {
    /// Group and version; read beforehand.
    #[serde(rename = "apiVersion")]
    _api_version: Ignored,
    /// Kind; read beforehand.
    #[serde(rename = "kind")]
    _kind: Ignored,
    /// Metadata.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
    /// Written by controllers.
    #[serde(default)]
    pub status: T,
}
