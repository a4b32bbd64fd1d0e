//! Peers whose certificates were read already: one value for each certificate, however many connections show it.
//!
//! So a connection costs a hash instead of a parse, and whatever is kept by peer (labels of metrics) is found by its place. Peers that
//! nobody holds are forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::peer::{Peer, Unreadable};

/// All peers in use.
#[derive(Debug, Default)]
pub struct KnownPeers(Mutex<HashMap<[u8; 32], Weak<Peer>>>);

impl KnownPeers {
    /// Whom a verified certificate belongs to.
    pub fn of(&self, certificate: &CertificateDer<'_>) -> Result<Arc<Peer>, Unreadable> {
        let hash: [u8; 32] = digest(&SHA256, certificate).as_ref().try_into().unwrap_or_default();
        let mut known = self.0.lock();
        if let Some(peer) = known.get(&hash).and_then(Weak::upgrade) {
            return Ok(peer);
        }
        let peer = Arc::new(Peer::of(certificate)?);
        if known.len() == known.capacity() {
            known.retain(|_, peer| peer.strong_count() > 0);
        }
        known.insert(hash, Arc::downgrade(&peer));
        Ok(peer)
    }
}
