//! The certificate of the control plane's own servers: renewed when half of its life is over.

use std::sync::Arc;

use tokio::time::sleep;

use super::authority::{Authority, SERVER_LIFE};
use crate::webhook::certificate::Current;

/// Puts another certificate in force each time that half of the life of the one before is over.
pub async fn keep(authority: Arc<Authority>, current: Arc<Current>, names: Vec<String>) {
    loop {
        sleep(SERVER_LIFE / 2).await;
        renew(&authority, &current, &names);
    }
}

/// Puts a certificate for these names in force. Where that fails, the one before still has half of its life.
pub fn renew(authority: &Authority, current: &Current, names: &[String]) {
    match authority.server(names).map(|(chain, key)| current.set(chain.as_bytes(), key.as_bytes())) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the servers' certificate can't be renewed: {error}"),
        Err(error) => tracing::error!("the servers' certificate can't be renewed: {error}"),
    }
}
