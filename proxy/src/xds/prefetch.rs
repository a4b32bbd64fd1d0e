//! The names that a sidecar used, kept in a file for its next start: they are asked for before anybody needs them.
//!
//! Nothing depends on the file: one that is missing, old or damaged is as good as none.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::on_demand::{Asked, Table};

/// As many as a start may ask for; the most recently used ones count.
const MOST: usize = 512;
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    names: Vec<Name>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Name {
    /// Route configuration; listeners have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    routes: Option<String>,
    /// A host whose addresses were asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    addresses: bool,
    name: String,
}

impl Name {
    fn new(Asked { table, name }: Asked) -> Self {
        let (routes, addresses) = match table {
            Table::Listeners => (None, false),
            Table::Hosts(route_config) => (Some(route_config.to_string()), false),
            Table::Addresses => (None, true),
        };
        Self { routes, addresses, name: name.into() }
    }

    fn asked(self) -> Asked {
        let table = match self.routes {
            _ if self.addresses => Table::Addresses,
            Some(route_config) => Table::Hosts(Arc::from(route_config)),
            None => Table::Listeners,
        };
        Asked { table, name: self.name.into() }
    }
}

/// Reads the names of the last run.
pub(super) async fn load(path: &Path) -> Vec<Asked> {
    let parsed = match tokio::fs::read(path).await {
        Ok(bytes) => serde_json::from_slice::<File>(&bytes).map_err(|e| e.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => Err(e.to_string()),
    };
    match parsed {
        Ok(file) if file.version == VERSION => file.names.into_iter().take(MOST).map(Name::asked).collect(),
        Ok(file) => {
            tracing::info!(file = %path.display(), version = file.version, "names of the last run: other version, ignored");
            Vec::new()
        }
        Err(reason) => {
            tracing::warn!(file = %path.display(), reason, "names of the last run cannot be read");
            Vec::new()
        }
    }
}

/// Writes the names, whole or not at all.
pub(super) async fn save(path: &Path, names: Vec<Asked>) {
    let file = File { version: VERSION, names: names.into_iter().take(MOST).map(Name::new).collect() };
    let text = serde_json::to_vec(&file).expect("names always serialize");
    let temporary = path.with_extension("tmp");
    let written = async {
        tokio::fs::write(&temporary, text).await?;
        tokio::fs::rename(&temporary, path).await
    };
    if let Err(error) = written.await {
        tracing::warn!(file = %path.display(), %error, "names for the next start cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_survive_and_damage_is_as_good_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.json");
        assert!(load(&path).await.is_empty());
        let names = vec![
            Asked { table: Table::Listeners, name: "10.0.0.1_80".into() },
            Asked { table: Table::Hosts("80".into()), name: "reviews".into() },
            Asked { table: Table::Addresses, name: "reviews.default.svc.cluster.local".into() },
        ];
        save(&path, names.clone()).await;
        assert_eq!(load(&path).await, names);
        std::fs::write(&path, b"{\"version\":1,\"na").unwrap();
        assert!(load(&path).await.is_empty());
        std::fs::write(&path, b"{\"version\":7,\"names\":[]}").unwrap();
        assert!(load(&path).await.is_empty());
        let many = (0..2 * MOST).map(|n| Asked { table: Table::Listeners, name: n.to_string().into() });
        save(&path, many.collect()).await;
        assert_eq!(load(&path).await.len(), MOST);
    }
}
