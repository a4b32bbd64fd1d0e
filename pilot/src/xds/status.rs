//! Who is connected and how far each client is, for `/debug/syncz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use osier_proto::xds::server::Status;
use parking_lot::Mutex;
use serde::Serialize;

use super::node::Client;
use crate::r#gen::key::ResourceType;

/// All connections.
#[derive(Debug, Default)]
pub struct Connected(Mutex<BTreeMap<u64, Arc<ConnectionStatus>>>);

/// One connection.
#[derive(Debug)]
pub struct ConnectionStatus {
    /// Node id.
    pub node: Arc<str>,
    /// Address of the peer.
    pub peer: String,
    /// What the program calls itself.
    pub user_agent: String,
    /// Version that it announces.
    pub version: String,
    /// Cluster that it says it is in; may be empty.
    pub cluster: String,
    /// Delta, or state of the world.
    pub incremental: bool,
    /// It asks for what it uses.
    pub on_demand: bool,
    /// Since when.
    pub since: SystemTime,
    types: Mutex<BTreeMap<ResourceType, Status>>,
}

/// How far a client is with one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// Never asked.
    NotSent,
    /// The last response is in force.
    Synced,
    /// Sent, and not acknowledged.
    Stale,
    /// Refused.
    Error,
}

impl ConnectionStatus {
    /// A connection that has got nothing yet.
    pub fn new(client: &Client, peer: String, incremental: bool) -> Self {
        Self {
            node: client.id.clone(),
            peer,
            user_agent: client.user_agent.clone(),
            version: client.version.clone(),
            cluster: client.cluster.clone(),
            incremental,
            on_demand: client.view.is_on_demand(),
            since: SystemTime::now(),
            types: Mutex::default(),
        }
    }

    /// Notes how far the client is with a type.
    pub fn note(&self, kind: ResourceType, status: Status) {
        self.types.lock().insert(kind, status);
    }

    /// How far the client is with a type.
    pub fn status(&self, kind: ResourceType) -> Option<Status> {
        self.types.lock().get(&kind).cloned()
    }

    /// The same in one word.
    pub fn state(&self, kind: ResourceType) -> SyncState {
        match self.status(kind) {
            None => SyncState::NotSent,
            Some(status) if status.refusal.is_some() => SyncState::Error,
            Some(status) if status.nonce_sent.is_none() => SyncState::NotSent,
            Some(status) if status.unacknowledged > 0 => SyncState::Stale,
            Some(_) => SyncState::Synced,
        }
    }
}

impl Connected {
    /// Adds a connection.
    pub fn add(&self, id: u64, status: Arc<ConnectionStatus>) {
        self.0.lock().insert(id, status);
    }

    /// Takes one away.
    pub fn remove(&self, id: u64) {
        self.0.lock().remove(&id);
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<ConnectionStatus>> {
        self.0.lock().values().cloned().collect()
    }
}
