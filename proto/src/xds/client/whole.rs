//! Responses read as news. A state-of-the-world response says what there is: here it becomes what is new and what is gone.

use std::time::Duration;

use super::subscription::Subscription;
use super::{Change, Incoming, News, Refused};
use crate::any::Any;
use crate::types::discovery::{self, DeltaDiscoveryResponse, DiscoveryResponse};
use crate::xds::{Name, Version, is_full_set};

impl News {
    pub(super) fn of_incremental(response: DeltaDiscoveryResponse) -> Self {
        Self {
            resources: response.resources.into_iter().map(Incoming::of_resource).collect(),
            removed: response.removed_resources.into_iter().map(Name::from).collect(),
            errors: response.resource_errors,
            refused: Vec::new(),
        }
    }

    /// Where a response holds the full set, what is held, or is about to be, and is not in it is gone. A name that was never there
    /// is not known to be absent: it may be on its way.
    pub(super) fn of_whole(
        response: DiscoveryResponse,
        subscription: &Subscription,
        unsettled: &[&mut Change],
    ) -> Self {
        let (mut resources, mut refused) = (Vec::new(), Vec::new());
        for (index, body) in response.resources.into_iter().enumerate() {
            match Incoming::of_any(body, &response.version_info) {
                Ok(resource) => resources.push(resource),
                Err(reason) => refused.push(Refused { name: format!("resources[{index}]").into(), reason }),
            }
        }
        let mut removed = Vec::new();
        // What can't be named may be any of those that seem to be missing.
        if is_full_set(&response.type_url) && refused.is_empty() {
            let present: std::collections::HashSet<&Name> = resources.iter().flat_map(|r| &r.names).collect();
            let coming =
                unsettled.iter().filter(|change| change.version.is_some()).map(|change| &change.name);
            let known: indexmap::IndexSet<&Name> =
                subscription.held().map(|(name, _)| name).chain(coming).collect();
            removed.extend(known.into_iter().filter(|name| !present.contains(*name)).cloned());
        }
        Self { resources, removed, errors: response.resource_errors, refused }
    }
}

impl Incoming {
    fn of_resource(resource: discovery::Resource) -> Self {
        let version: Name = resource.version.into();
        Self {
            names: std::iter::once(resource.name).chain(resource.aliases).map(Name::from).collect(),
            shown: version.clone(),
            version,
            ttl: resource.ttl.map(duration),
            body: resource.resource,
        }
    }

    /// A resource of a state-of-the-world response, bare or in the wrapper that gives it a time to live. Its version is its content's.
    fn of_any(body: Any, version_info: &str) -> Result<Self, String> {
        let mut resource = if body.is::<discovery::Resource>() {
            let wrapped: discovery::Resource = body.unpack().map_err(|error| error.to_string())?;
            Self::of_resource(wrapped)
        } else {
            let name = name_of(&body.value).ok_or("has no name")?;
            Self { names: vec![name], version: "".into(), shown: "".into(), ttl: None, body: Some(body) }
        };
        if let Some(body) = &resource.body {
            resource.version = Version::of(body).to_string().into();
        }
        if resource.shown.is_empty() {
            resource.shown = version_info.into();
        }
        Ok(resource)
    }
}

/// A resource's name: field 1 of every type of resource.
fn name_of(message: &[u8]) -> Option<Name> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    let Named { name } = prost::Message::decode(message).ok()?;
    (!name.is_empty()).then(|| name.into())
}

fn duration(ttl: prost_types::Duration) -> Duration {
    // A negative one has run out.
    Duration::try_from(ttl).unwrap_or_default()
}

#[cfg(test)]
mod tests;
