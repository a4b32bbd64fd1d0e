//! The certificate of the control plane's own servers: renewed when half of its life is over, and when another authority signs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::authority::{Authority, SERVER_LIFE};
use super::in_force::Signs;
use crate::webhook::certificate::Current;

/// An authority that ends is asked no more often than that.
const SHORTEST: Duration = Duration::from_secs(60);

/// Puts a certificate in force as soon as there is an authority, and another one each time that it is due. `first` is dropped when
/// the first is in force.
pub async fn keep<F>(mut signs: Signs, current: Arc<Current>, names: Vec<String>, first: F) {
    let mut first = Some(first);
    loop {
        let authority = signs.borrow_and_update().clone();
        let mut life = SERVER_LIFE;
        if let Some(authority) = authority {
            renew(&authority, &current, &names);
            drop(first.take());
            life = authority.left().map_or(SHORTEST, |left| left.clamp(SHORTEST, SERVER_LIFE));
        }
        tokio::select! {
            changed = signs.changed() => if changed.is_err() {
                return;
            },
            () = sleep(life / 2) => {}
        }
    }
}

/// Puts a certificate for these names in force. Where that fails, the one before still has half of its life.
fn renew(authority: &Authority, current: &Current, names: &[String]) {
    match authority.server(names).map(|(chain, key)| current.set(chain.as_bytes(), key.as_bytes())) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the servers' certificate can't be renewed: {error}"),
        Err(error) => tracing::error!("the servers' certificate can't be renewed: {error}"),
    }
}
