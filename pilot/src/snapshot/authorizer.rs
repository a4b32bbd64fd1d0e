//! Which external authorizer AuthorizationPolicies of action CUSTOM mean for a workload, and why they mean none.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::{Authorizer, Service};

/// Why nobody can be asked. What would be asked about is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAuthorizer {
    /// The mesh has none of this name.
    Unknown(Arc<str>),
    /// Its service isn't there, or not for this workload.
    NoService(Arc<str>),
    /// The service has no such port.
    NoPort(Arc<str>, u16),
    /// Policies for one workload name several, and it is not said who would be asked first.
    Several(BTreeSet<Arc<str>>),
}

impl fmt::Display for NoAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => {
                write!(f, "{name:?} is no external authorizer of the mesh's extensionProviders")
            }
            Self::NoService(name) => {
                write!(f, "the service of {name:?} is not there, or is not exported here")
            }
            Self::NoPort(name, port) => write!(f, "the service of {name:?} has no port {port}"),
            Self::Several(names) => {
                let names: Vec<&str> = names.iter().map(|name| &**name).collect();
                write!(f, "several external authorizers for one workload: {}", names.join(", "))
            }
        }
    }
}

impl MeshSnapshot {
    /// The authorizer that policies with these providers mean for a workload of `namespace`, and its service.
    pub fn authorizer<'s>(
        &'s self,
        namespace: &str,
        providers: &BTreeSet<Arc<str>>,
    ) -> Result<(&'s Authorizer, &'s Arc<Service>), NoAuthorizer> {
        let name = match providers.iter().collect::<Vec<_>>()[..] {
            [name] => name,
            _ => return Err(NoAuthorizer::Several(providers.clone())),
        };
        let named = self.mesh.authorizers.iter().find(|authorizer| authorizer.name == *name);
        let authorizer = named.ok_or_else(|| NoAuthorizer::Unknown(name.clone()))?;
        let host = self.resolve_alias(namespace, authorizer.host.as_str());
        let service = host.and_then(|host| self.service(namespace, host.as_str()));
        let right = |service: &&Arc<Service>| {
            authorizer.namespace.as_ref().is_none_or(|namespace| service.key.namespace == *namespace)
        };
        let service = service.filter(right).ok_or_else(|| NoAuthorizer::NoService(name.clone()))?;
        match service.port(authorizer.port) {
            Some(_) => Ok((authorizer, service)),
            None => Err(NoAuthorizer::NoPort(name.clone(), authorizer.port)),
        }
    }
}
