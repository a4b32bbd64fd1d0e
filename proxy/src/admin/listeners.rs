//! `/listeners`: names and addresses, bound or not; `/plaintext_callers`: who comes to them without mutual TLS.

use osier_core::admin::{Reply, Request};
use serde_json::json;

use super::{Admin, clusters};
use crate::config::listener::Direction;

pub(super) fn page(admin: &Admin, request: &Request) -> Reply {
    let snapshot = admin.shared.snapshot.load();
    let bound = admin.acceptors.addresses();
    let mut listeners: Vec<_> = snapshot.listeners.values().collect();
    listeners.sort_by(|a, b| a.name.cmp(&b.name));
    // With port 0 the system has chosen; what it chose is what people want to see.
    let shown = listeners.into_iter().map(|listener| {
        let chosen = bound.iter().find(|(name, _)| *name == listener.name).map(|(_, address)| *address);
        (&listener.name, chosen.unwrap_or(listener.address))
    });
    if request.parameter("format") == Some("json") {
        let statuses: Vec<_> = shown
            .map(|(name, address)| json!({"name": name, "local_address": clusters::address(address)}))
            .collect();
        return Reply::json(&json!({"listener_statuses": statuses}));
    }
    Reply::text(shown.map(|(name, address)| format!("{name}::{address}\n")).collect::<String>())
}

/// Callers, and whether any of them would be taken: what STRICT is waited for by.
pub(super) fn plaintext_callers(admin: &Admin) -> Reply {
    let snapshot = admin.shared.snapshot.load();
    let mut inbound = snapshot.listeners.values().filter(|listener| listener.direction == Direction::Inbound);
    let takes = inbound.any(|listener| listener.takes_plaintext());
    let mut page = admin.shared.plaintext_callers.page();
    page["takes_plaintext"] = takes.into();
    Reply::json(&page)
}
