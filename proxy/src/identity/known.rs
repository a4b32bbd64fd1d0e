//! Peers whose certificates were read already: one value for each certificate, however many connections show it.
//!
//! So a connection costs a hash instead of a parse, and whatever is kept by peer (labels of metrics) is found by its place. Peers that
//! nobody holds are forgotten, but for the one that was asked for last: who checks a certificate within a handshake is followed by who
//! asks whose it was.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::peer::{Peer, Unreadable, hash};

/// All peers in use.
#[derive(Debug, Default)]
pub struct KnownPeers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    peers: HashMap<[u8; 32], Weak<Peer>>,
    last: Option<Arc<Peer>>,
}

impl KnownPeers {
    /// Whom a verified certificate belongs to, that was shown with others behind it.
    pub fn of(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
    ) -> Result<Arc<Peer>, Unreadable> {
        let hash = hash(certificate);
        let mut known = self.0.lock();
        let found = known.peers.get(&hash).and_then(Weak::upgrade);
        if let Some(peer) = found.filter(|peer| peer.chain[1..] == *between) {
            known.last = Some(peer.clone());
            return Ok(peer);
        }
        let peer = Arc::new(Peer::with_hash(certificate, between, hash)?);
        if known.peers.len() == known.peers.capacity() {
            known.peers.retain(|_, peer| peer.strong_count() > 0);
        }
        known.peers.insert(hash, Arc::downgrade(&peer));
        known.last = Some(peer.clone());
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_read_once_while_somebody_holds_it() {
        let certificate = || {
            let key = KeyPair::generate().unwrap();
            CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().der().clone()
        };
        let (one, other) = (certificate(), certificate());
        let known = KnownPeers::default();
        let first = known.of(&one, &[]).unwrap();
        assert!(Arc::ptr_eq(&first, &known.of(&one, &[]).unwrap()));
        let longer = known.of(&one, std::slice::from_ref(&other)).unwrap();
        assert!(!Arc::ptr_eq(&first, &longer), "it was shown with another chain");
        assert_eq!(longer.chain.len(), 2);
        let weak = Arc::downgrade(&known.of(&other, &[]).unwrap());
        assert_eq!(weak.strong_count(), 1, "whose it was is asked next");
        known.of(&one, &[]).unwrap();
        assert_eq!(weak.strong_count(), 0);
    }
}
