//! Name tables (NDS): from the control plane to what DNS answers from.
//!
//! They don't warm and nothing refers to them, so that they are in force, and acknowledged, as they come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use osier_proto::types::nds::{NameTable, name_table::NameInfo};
use osier_proto::xds::client::{Content, Received, Refused, Update};

use super::watch::Watch;
use crate::compile::{self, Invalid};
use crate::dns::{Directory, Row};
use crate::on_demand::HostAddresses;

impl Watch {
    /// Takes a response of name tables.
    pub(super) fn on_name_tables(&mut self, received: Received) {
        let Some(directory) = self.directory.clone() else { return };
        let mut refused = Vec::new();
        for Update { name, asked, content } in received.updates {
            if !asked {
                continue;
            }
            if let Err(error) = self.take_name_table(&directory, &name, content) {
                let reason = error.to_string();
                tracing::warn!(type_url = %received.type_url, %name, reason, "control plane: resource refused");
                refused.push(Refused { name, reason });
            }
        }
        self.client.applied(received.id, refused);
    }

    fn take_name_table(&self, directory: &Directory, name: &str, content: Content) -> Result<(), Invalid> {
        let tables = self.demand.as_ref().filter(|demand| demand.agreed).map(|demand| &demand.tables);
        let resource = match content {
            Content::Present { resource, .. } => Some(resource),
            Content::Absent => None,
            Content::Failed(status) => {
                tracing::warn!(%name, reason = status.message, "control plane: no answer for this name");
                return Ok(());
            }
        };
        let mut table = match &resource {
            Some(resource) => compile::decode::<NameTable>(resource)?.table,
            None => BTreeMap::new(),
        };
        match tables.map(|tables| tables.addresses()) {
            // What was given back meanwhile stays so.
            Some(addresses) if addresses.is_wanted(name) => {
                let found = table.remove(name).map(|info| addresses_of(name, &info)).transpose()?.flatten();
                addresses.publish(name, found);
            }
            Some(_) => {}
            None if resource.is_some() => directory.replace(rows(&table)?),
            // Nobody takes the whole table away; what is known stays.
            None => {}
        }
        Ok(())
    }
}

fn rows(table: &BTreeMap<String, NameInfo>) -> Result<Vec<Row>, Invalid> {
    let mut rows = Vec::with_capacity(table.len());
    for (host, info) in table {
        let Some(addresses) = addresses_of(host, info)? else { continue };
        let kubernetes = info.registry == "Kubernetes" && !info.shortname.is_empty();
        let short = kubernetes.then(|| (info.shortname.clone(), info.namespace.clone()));
        rows.push(Row { host: host.clone(), addresses, short });
    }
    Ok(rows)
}

fn addresses_of(host: &str, info: &NameInfo) -> Result<Option<Arc<HostAddresses>>, Invalid> {
    let parse = |(at, text): (usize, &String)| {
        let field = format!("table[\"{host}\"].ips[{at}]");
        text.parse::<IpAddr>().map_err(|_| Invalid::new(field, format!("`{text}` is not an IP address")))
    };
    let parsed: Box<[IpAddr]> = info.ips.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    Ok((!parsed.is_empty()).then(|| Arc::new(HostAddresses(parsed))))
}
