//! xDS messages to the representation in `config`: the only place that knows Envoy's defaults and validity rules.
//!
//! One file per resource type, each with one public function from a message to a validated value. A resource is taken whole or
//! refused whole, with its name, the path of the field and the reason. Nothing is ignored silently: fields that aren't declared
//! are found by walking the wire bytes, extensions that aren't known are refused with their type unless marked optional, and
//! what is declared but has no effect here is listed in the table of `osier_proto`.

use std::fmt;

use osier_proto::Any;
use prost::{Message, Name};

use crate::authz::counters::Counters;
use crate::config::snapshot::Clusters;
use crate::config::tls::Secrets;
use crate::on_demand::OnDemand;

pub mod access_log;
pub mod cluster;
pub mod endpoint;
mod ext_authz;
pub mod http_manager;
mod jwt;
pub mod listener;
pub mod matcher;
mod rbac;
pub mod refs;
pub mod retry;
pub mod route;
pub mod tls;
pub(crate) mod value;

pub use refs::{References, RouteConfigRef};

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Resource name.
    pub name: String,
    /// Path of the field, e.g. `filter_chains[0].filters[1].typed_config.route_config`; empty for the resource as a whole.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Rejected {}

/// A field that is not valid; becomes [`Rejected`] when it reaches the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    fn under(mut self, parent: &str) -> Self {
        self.field = match (self.field.as_str(), parent) {
            ("", parent) => parent.to_owned(),
            (field, "") => field.to_owned(),
            (field, parent) => format!("{parent}.{field}"),
        };
        self
    }

    pub(crate) fn in_resource(self, name: &str) -> Rejected {
        Rejected { name: name.to_owned(), field: self.field, reason: self.reason }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl Rejected {
    /// The field alone, for a resource that is itself part of something.
    pub(crate) fn into_invalid(self) -> Invalid {
        Invalid { field: self.field, reason: self.reason }
    }
}

/// Puts the parent's name before a field's path.
pub(crate) trait At<T> {
    fn at(self, field: &str) -> Result<T, Invalid>;
    fn at_index(self, field: &str, index: usize) -> Result<T, Invalid>;
}

impl<T> At<T> for Result<T, Invalid> {
    fn at(self, field: &str) -> Result<T, Invalid> {
        self.map_err(|e| e.under(field))
    }

    fn at_index(self, field: &str, index: usize) -> Result<T, Invalid> {
        self.map_err(|e| e.under(&format!("{field}[{index}]")))
    }
}

/// What resources are compiled against.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Gives the handles that routes hold.
    pub clusters: &'a Clusters,
    /// Gives the handles of certificates.
    pub secrets: &'a Secrets,
    /// Gives the tables of route configurations whose virtual hosts are asked for one by one; `None` where the control plane
    /// hasn't confirmed that.
    pub on_demand: Option<&'a OnDemand>,
    /// Gives the counts of what is denied.
    pub counters: &'a Counters,
    /// True for clusters that the control plane has sent, or the bootstrap file holds (`validate_clusters`).
    pub cluster_exists: &'a dyn Fn(&str) -> bool,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Decodes a resource after checking that every field in it is known.
pub(crate) fn decode<M: Message + Name + Default>(any: &Any) -> Result<M, Invalid> {
    if !any.is::<M>() {
        return Err(Invalid::new("", format!("expected {}, found {}", M::type_url(), any.type_url)));
    }
    let unknown = osier_proto::unknown::unknown_fields(any);
    if let Some((first, rest)) = unknown.split_first() {
        let more = rest.iter().map(|u| format!("; {u}")).collect::<String>();
        return Err(Invalid::new(first.path.clone(), format!("{}{more}", first.reason)));
    }
    any.unpack().map_err(|e| Invalid::new("", e))
}

/// Content hash of a resource: equal content is no change.
pub fn content_hash(any: &Any) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&any.value)
}

#[cfg(test)]
mod tests;
