//! What an encrypted connection rests on: whom the other end has proved to be, and by which roots.
//!
//! A connection outlives the handshake that believed its peer. Roots may go while it is open: then it must end, unless another root
//! vouches for the same chain. That a certificate has ended since ends nothing: it is looked at as at the time of the handshake.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::known::KnownPeers;
use super::peer::Peer;
use crate::config::tls::{Role, SecretHandle, Trust};

/// What access logs say of what ended because nobody vouches for the client any more.
pub const DISTRUSTED_CLIENT: &str = "downstream_peer_no_longer_trusted";
/// The same of a server.
pub const DISTRUSTED_SERVER: &str = "upstream_peer_no_longer_trusted";

/// The ground of one connection.
#[derive(Debug)]
pub struct Vouch {
    peer: Arc<Peer>,
    role: Role,
    /// When the peer was believed.
    at: UnixTime,
    trust: Arc<SecretHandle>,
    /// The roots that it was held against last.
    seen: ArcSwapOption<Trust>,
    /// What we have shown, and which one that was.
    own: Option<(Arc<SecretHandle>, u64)>,
    /// Whom that named; `None` where we showed nothing, or are the server.
    shown: Option<Arc<Peer>>,
}

/// What is known before a handshake, so that nothing that changes while it lasts is missed.
#[derive(Debug)]
pub struct Before {
    trust: Arc<SecretHandle>,
    seen: Option<Arc<Trust>>,
    own: Option<(Arc<SecretHandle>, u64)>,
    role: Role,
}

impl Before {
    /// A handshake with a peer of this role begins; it is believed by `trust` and shown `own`.
    pub fn new(role: Role, trust: &Arc<SecretHandle>, own: Option<&Arc<SecretHandle>>) -> Self {
        let own = own.map(|own| (own.clone(), own.succession()));
        Self { trust: trust.clone(), seen: trust.trust(), own, role }
    }

    /// It has ended well, and this chain was shown; `None` where nothing was. An error where its names can't be read.
    pub fn ended(
        self,
        chain: Option<&[CertificateDer<'_>]>,
        known: &KnownPeers,
    ) -> io::Result<Option<Arc<Vouch>>> {
        let Some([leaf, between @ ..]) = chain else { return Ok(None) };
        let peer = known.of(leaf, between);
        let peer = peer.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let shown =
            self.own.as_ref().filter(|_| self.role == Role::Server).and_then(|(own, _)| own.certificate());
        let shown = shown.and_then(|own| match &own.cert[..] {
            [leaf, between @ ..] => known.of(leaf, between).ok(),
            [] => None,
        });
        Ok(Some(self.believed(peer, shown)))
    }

    pub(super) fn believed(self, peer: Arc<Peer>, shown: Option<Arc<Peer>>) -> Arc<Vouch> {
        let Self { trust, seen, own, role } = self;
        let seen = ArcSwapOption::new(seen);
        Arc::new(Vouch { peer, role, at: UnixTime::now(), trust, seen, own, shown })
    }
}

impl Vouch {
    /// Whom the other end has proved to be.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whom we have proved to be, to a server.
    pub fn shown(&self) -> Option<&Arc<Peer>> {
        self.shown.as_ref()
    }

    /// True while a root in force vouches for the peer. Costs next to nothing while the roots are the same.
    pub fn holds(&self) -> bool {
        let Some(trust) = self.trust.trust() else { return true };
        if self.seen.load().as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &trust)) {
            return true;
        }
        let holds = trust.vouches(&self.peer.chain, self.role, self.at);
        if holds {
            self.seen.store(Some(trust));
        }
        holds
    }

    /// True while it is good for more than what is under way.
    pub fn is_wanted(&self) -> bool {
        self.is_fresh() && self.holds()
    }

    /// True while what we have shown is from the root that signs now. The other end may stop to believe the one before.
    pub fn is_fresh(&self) -> bool {
        self.own.as_ref().is_none_or(|(own, succession)| own.succession() == *succession)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::config::tls::Secret;
    use crate::identity::test_support::{Root, believing, roots};

    #[test]
    fn a_chain_is_held_against_other_roots_as_at_its_handshake() {
        let (old, new) = (Root::new("old"), Root::new("new"));
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let (trust, peer) = (believing(&[&old]), old.peer(now - 3 * hour, now - hour));
        let ago = |time| UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) - time);
        let believed = |at| {
            let before = Before::new(Role::Client, &trust, None);
            Vouch { at, ..Arc::into_inner(before.believed(peer.clone(), None)).unwrap() }
        };
        // The certificate has ended by now: that is no reason to end what was opened in time.
        let (in_time, late) = (believed(ago(2 * hour)), believed(ago(Duration::ZERO)));
        assert!(in_time.holds() && late.holds(), "the roots are the same");
        trust.publish(Secret::Trust(roots(&[&new, &old])));
        assert!(in_time.holds() && !late.holds());
        trust.publish(Secret::Trust(roots(&[&new])));
        assert!(!in_time.holds());
        trust.publish(Secret::Trust(roots(&[&old])));
        assert!(in_time.holds(), "it is looked at anew");
    }
}
