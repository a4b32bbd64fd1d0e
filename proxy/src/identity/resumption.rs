//! Sessions that are taken up again: handshakes without certificates, because both ends remember whom they have believed.
//!
//! A server remembers nothing: its [`Tickets`] hold the client's certificates, sealed by a key that one TLS context has and no other.
//! A client keeps the last ticket of each endpoint ([`Sessions`]), for the context of one cluster.
//!
//! Invariants: a session rests on the `Grounds` that its end goes by, and is not taken up where they are others by now, nor where
//! the server's certificate has ended; there is a whole handshake instead. So nobody goes on with a certificate whose root is about to
//! be removed. What is taken up is held against time, roots and names again before a byte of it counts (`ServerTls::look_again`,
//! `ClientTls::look_again`): `listener::arrival` and `upstream::connect` do that.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::{Error, NamedGroup};

use crate::config::tls::{SecretHandle, Trust};

/// Endpoints of one cluster whose tickets are kept. A ticket holds our certificates and stands beside the server's: about 3 KiB.
const MOST: usize = 256;

/// What one end of a handshake goes by. Only which it is, so that no old key stays because of it.
#[derive(Debug, Clone, Default)]
struct Grounds {
    /// The roots that vouch for the other end; nothing where it proves nothing.
    trust: Weak<Trust>,
    /// What this end shows.
    own: Weak<CertifiedKey>,
}

impl Grounds {
    fn of(trust: Option<&Arc<SecretHandle>>, own: Option<&Arc<SecretHandle>>) -> Self {
        let (trust, own) = (trust.and_then(|trust| trust.trust()), own.and_then(|own| own.certificate()));
        Self {
            trust: trust.as_ref().map(Arc::downgrade).unwrap_or_default(),
            own: own.as_ref().map(Arc::downgrade).unwrap_or_default(),
        }
    }

    fn are(&self, others: &Self) -> bool {
        self.trust.ptr_eq(&others.trust) && self.own.ptr_eq(&others.own)
    }
}

/// What a server gives its clients to come back with.
#[derive(Debug)]
pub struct Tickets {
    trust: Option<Arc<SecretHandle>>,
    own: Arc<SecretHandle>,
    current: Mutex<Seal>,
}

#[derive(Debug)]
struct Seal {
    /// What the server went by whenever it was used.
    grounds: Grounds,
    keys: Arc<dyn ProducesTickets>,
}

impl Tickets {
    /// Tickets of one TLS context, which believes clients by `trust` and shows `own`. An error where there are no random bytes.
    pub fn new(trust: Option<Arc<SecretHandle>>, own: Arc<SecretHandle>) -> Result<Arc<Self>, Error> {
        let current = Seal::new(Grounds::of(trust.as_ref(), Some(&own)))?;
        Ok(Arc::new(Self { trust, own, current: Mutex::new(current) }))
    }

    /// The keys for what is in force: those of before are forgotten, and their tickets with them.
    fn keys(&self) -> Option<Arc<dyn ProducesTickets>> {
        let grounds = Grounds::of(self.trust.as_ref(), Some(&self.own));
        let mut current = self.current.lock();
        if !current.grounds.are(&grounds) {
            *current = Seal::new(grounds).ok()?;
        }
        Some(current.keys.clone())
    }
}

impl Seal {
    fn new(grounds: Grounds) -> Result<Self, Error> {
        Ok(Self { grounds, keys: Ticketer::new()? })
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.current.lock().keys.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.keys()?.decrypt(cipher)
    }
}

/// Tickets that the endpoints of a cluster gave us, the last of each.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<Key, Kept>>);

/// Whom it is of: the address, and whom the ClientHello asked for.
type Key = (SocketAddr, ServerName<'static>);

/// A ticket, and on what grounds the server was believed.
#[derive(Debug)]
struct Kept {
    ticket: Tls13ClientSessionValue,
    grounds: Grounds,
    /// When the server's certificate ends.
    until: UnixTime,
}

/// One connection's part in the [`Sessions`]: what it may begin with, and what it leaves behind.
#[derive(Debug)]
pub struct Session {
    sessions: Arc<Sessions>,
    endpoint: SocketAddr,
    grounds: Grounds,
    stage: Mutex<Stage>,
}

/// How far a connection is.
#[derive(Debug)]
enum Stage {
    /// The server isn't believed yet. Some send a ticket with their first words: it waits here.
    Handshake(Option<(ServerName<'static>, Tls13ClientSessionValue)>),
    /// It is, until its certificate ends.
    Believed(UnixTime),
}

impl Session {
    /// For a connection to `endpoint` that is about to be opened, where servers are believed by `trust` and shown `own`.
    pub fn new(
        sessions: &Arc<Sessions>,
        endpoint: SocketAddr,
        trust: &Arc<SecretHandle>,
        own: Option<&Arc<SecretHandle>>,
    ) -> Arc<Self> {
        let grounds = Grounds::of(Some(trust), own);
        let stage = Mutex::new(Stage::Handshake(None));
        Arc::new(Self { sessions: sessions.clone(), endpoint, grounds, stage })
    }

    /// The handshake is done, and the server's certificate ends then (in seconds since 1970). Tickets are kept from now on.
    pub fn is_believed_until(&self, not_after: i64) {
        let until = std::time::Duration::from_secs(not_after.try_into().unwrap_or_default());
        let until = UnixTime::since_unix_epoch(until);
        let before = std::mem::replace(&mut *self.stage.lock(), Stage::Believed(until));
        if let Stage::Handshake(Some((name, ticket))) = before {
            self.keep(name, ticket, until);
        }
    }

    fn keep(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue, until: UnixTime) {
        let mut kept = self.sessions.0.lock();
        let key = (self.endpoint, name);
        // Endpoints come and go: those that are still there leave a new one soon.
        if kept.len() >= MOST && !kept.contains_key(&key) {
            kept.clear();
        }
        kept.insert(key, Kept { ticket, grounds: self.grounds.clone(), until });
    }
}

impl ClientSessionStore for Session {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        // Servers without the hybrid group take the share of X25519 that is offered beside it.
        None
    }

    // Sessions of TLS 1.2 have no secrecy beside that of a ticket's key: there is a whole handshake.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut stage = self.stage.lock();
        match &mut *stage {
            Stage::Handshake(waiting) => *waiting = Some((name, ticket)),
            Stage::Believed(until) => self.keep(name, ticket, *until),
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let kept = self.sessions.0.lock().remove(&(self.endpoint, name.clone()))?;
        let holds = kept.grounds.are(&self.grounds) && UnixTime::now().as_secs() < kept.until.as_secs();
        holds.then_some(kept.ticket)
    }
}
