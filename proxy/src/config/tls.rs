//! TLS as filter chains and clusters have it: what is shown, and who is believed.
//!
//! Certificates and roots are no part of it: a chain or cluster holds [`SecretHandle`]s, and SDS, or the workload's own identity, swaps
//! what is inside. Each handshake takes what is in force then. Another certificate touches no connection that exists; one whose peer
//! no root vouches for any more is closed ([`Vouch`](crate::identity::vouch::Vouch)). Nothing is believed before the roots have come: a
//! handshake fails until then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};

use super::route::ValueMatch;
use crate::identity::known::KnownPeers;
use crate::identity::peer::{fingerprint, hash};
use crate::identity::vouch::Before;

/// The cryptography of all TLS of ours.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// What a server speaks, shows, and asks of its clients.
pub fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    certificate: Arc<SecretHandle>,
    check: Option<PeerCheck>,
) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let Some(check) = check else {
        let mut config = builder.with_no_client_auth().with_cert_resolver(certificate);
        config.send_tls13_tickets = 1;
        // Sessions that clients keep themselves: no memory here, and they survive an update of the listener not longer than its key.
        config.ticketer = Ticketer::new()?;
        return Ok(config);
    };
    let mut config = builder.with_client_cert_verifier(Arc::new(check)).with_cert_resolver(certificate);
    // Who resumes a session shows no certificate: who was believed once would be believed for as long as the session lives.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// What a client speaks, shows where it is asked, and whom it believes.
pub fn client_config(
    versions: &[&'static SupportedProtocolVersion],
    own: Option<Arc<SecretHandle>>,
    check: PeerCheck,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(check));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    // A session that is resumed shows no certificate, and pools keep connections anyway.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS of a filter chain, ready for handshakes.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// What is shown.
    own: Arc<SecretHandle>,
    /// Who vouches for clients, where they are asked for a certificate.
    trust: Option<Arc<SecretHandle>>,
    /// For clients that offer protocols and none of ours: they get a session without one, as from Envoy.
    without_protocols: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS with one configuration, which shows `own` and believes clients by `trust`.
    pub fn new(config: ServerConfig, own: Arc<SecretHandle>, trust: Option<Arc<SecretHandle>>) -> Self {
        let mut without = config.clone();
        without.alpn_protocols.clear();
        Self { config: Arc::new(config), own, trust, without_protocols: Arc::new(without) }
    }

    /// A handshake begins; `None` where clients prove nothing.
    pub fn before(&self) -> Option<Before> {
        self.trust.as_ref().map(|trust| Before::new(Role::Client, trust, Some(&self.own)))
    }

    /// The configuration for a client that offers these protocols.
    pub fn for_client(&self, offered: &[Arc<str>]) -> Arc<ServerConfig> {
        let ours = &self.config.alpn_protocols;
        let agree = offered.is_empty() || offered.iter().any(|p| ours.iter().any(|o| **o == *p.as_bytes()));
        if agree { self.config.clone() } else { self.without_protocols.clone() }
    }
}

/// TLS towards the endpoints of a cluster.
#[derive(Debug)]
pub struct ClientTls {
    opaque: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    /// What the ClientHello names; none where nothing is configured.
    server_name: Option<ServerName<'static>>,
    /// What is shown, where the server may ask for it.
    own: Option<Arc<SecretHandle>>,
    /// Who vouches for the server.
    trust: Arc<SecretHandle>,
    /// Peers that were read already.
    known: Arc<KnownPeers>,
}

/// What is spoken within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Anything.
    Opaque,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The word by which proxies of the mesh know each other (ALPN).
const MESH: &[u8] = b"istio";

impl ClientTls {
    /// TLS with one configuration. Where it offers `istio`, HTTP says its version as well, as between proxies of Istio.
    pub fn new(
        config: ClientConfig,
        server_name: Option<ServerName<'static>>,
        own: Option<Arc<SecretHandle>>,
        (trust, known): (Arc<SecretHandle>, Arc<KnownPeers>),
    ) -> Self {
        let mesh = config.alpn_protocols.iter().any(|protocol| protocol == MESH);
        let offering = |protocols: [&[u8]; 3]| {
            let mut offering = config.clone();
            offering.alpn_protocols = protocols.map(<[u8]>::to_vec).to_vec();
            Arc::new(offering)
        };
        let opaque = Arc::new(config.clone());
        let [http1, http2] = match mesh {
            true => [offering([b"istio-http/1.1", MESH, b"http/1.1"]), offering([b"istio-h2", MESH, b"h2"])],
            false => [opaque.clone(), opaque.clone()],
        };
        Self { opaque, http1, http2, server_name, own, trust, known }
    }

    /// Peers that were read already.
    pub fn known(&self) -> &KnownPeers {
        &self.known
    }

    /// A handshake begins.
    pub fn before(&self) -> Before {
        Before::new(Role::Server, &self.trust, self.own.as_ref())
    }

    /// The configuration for a connection.
    pub fn config(&self, within: Within) -> Arc<ClientConfig> {
        match within {
            Within::Opaque => self.opaque.clone(),
            Within::Http1 => self.http1.clone(),
            Within::Http2 => self.http2.clone(),
        }
    }

    /// Whom a connection to `address` asks for.
    pub fn server_name(&self, address: std::net::IpAddr) -> ServerName<'static> {
        self.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(IpAddr::from(address)))
    }

    /// False as long as there is nothing to show: no server that wants a certificate would take a connection.
    pub fn is_ready(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.certificate.load().is_some())
    }
}

/// A certificate with its key, or roots, by the name under which they come. Empty until they came: then handshakes fail.
#[derive(Debug, Default)]
pub struct SecretHandle {
    /// Name of the SDS resource; empty for one that is written where it is used.
    pub name: Arc<str>,
    certificate: ArcSwapOption<CertifiedKey>,
    trust: ArcSwapOption<Trust>,
    /// Grows when the certificate is of another root than the one before.
    succession: AtomicU64,
}

/// What a secret holds.
#[derive(Debug, Clone)]
pub enum Secret {
    /// A certificate with its key.
    Certificate(Arc<CertifiedKey>),
    /// Roots.
    Trust(Arc<Trust>),
}

impl SecretHandle {
    /// A handle without content.
    pub fn empty(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.into(), ..Self::default() })
    }

    /// A handle with what it shall hold.
    pub fn new(name: &str, current: Secret) -> Arc<Self> {
        let handle = Self::empty(name);
        handle.publish(current);
        handle
    }

    /// Puts a secret in force for new connections.
    pub fn publish(&self, secret: Secret) {
        match secret {
            Secret::Certificate(certificate) => self.certificate.store(Some(certificate)),
            Secret::Trust(trust) => self.trust.store(Some(trust)),
        }
    }

    /// Puts a certificate in force whose root is another than that of the one before: connections that showed that one end politely.
    pub fn succeed(&self, certificate: Arc<CertifiedKey>) {
        self.certificate.store(Some(certificate));
        self.succession.fetch_add(1, Ordering::Release);
    }

    /// How many certificates of other roots came before the one in force.
    pub fn succession(&self) -> u64 {
        self.succession.load(Ordering::Acquire)
    }

    /// The roots in force.
    pub fn trust(&self) -> Option<Arc<Trust>> {
        self.trust.load_full()
    }

    /// The certificate in force.
    pub fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.certificate.load_full()
    }
}

impl ResolvesServerCert for SecretHandle {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate()
    }
}

impl ResolvesClientCert for SecretHandle {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certificate()
    }

    fn has_certs(&self) -> bool {
        self.certificate.load().is_some()
    }
}

/// Which end a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It came to us.
    Client,
    /// We went to it.
    Server,
}

/// Roots, ready to verify chains.
#[derive(Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    /// SHA-256 of the first root, in hexadecimal digits.
    first: Box<str>,
}

impl Trust {
    /// Trust in these roots; an error where there is none, or one is no certificate.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, String> {
        let (mut store, mut first) = (RootCertStore::empty(), None);
        for root in roots {
            first.get_or_insert_with(|| fingerprint(&hash(&root)).into());
            store.add(root).map_err(|error| error.to_string())?;
        }
        let (roots, first) = (Arc::new(store), first.unwrap_or_default());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let clients = clients.build().map_err(|error| error.to_string())?;
        Ok(Self { roots, clients, first })
    }

    /// True where one of the roots vouches for a chain (the leaf first), as at `time`.
    pub fn vouches(&self, chain: &[CertificateDer<'_>], role: Role, time: UnixTime) -> bool {
        let [leaf, between @ ..] = chain else { return false };
        match role {
            Role::Client => self.clients.verify_client_cert(leaf, between, time).is_ok(),
            Role::Server => vouches_for_server(&self.roots, leaf, between, time).is_ok(),
        }
    }

    /// The place of the root that vouches for a chain, as at `time`. Authorities tell first the root that signs.
    pub fn vouching(&self, chain: &[CertificateDer<'_>], time: UnixTime) -> Option<usize> {
        let [leaf, between @ ..] = chain else { return None };
        self.roots.roots.iter().position(|root| {
            let only = RootCertStore { roots: vec![root.clone()] };
            vouches_for_server(&only, leaf, between, time).is_ok()
        })
    }

    /// True where the same roots are believed, told in the same order.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.roots.roots == other.roots.roots
    }

    /// SHA-256 of the root that comes first, in lower-case hexadecimal digits.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// The roots.
    pub fn roots(&self) -> &RootCertStore {
        &self.roots
    }
}

fn vouches_for_server(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    time: UnixTime,
) -> Result<(), Error> {
    let leaf = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, between, time, algorithms)
}

/// A name of which a certificate must have one.
#[derive(Debug)]
pub struct NameMatch {
    /// Among its URI names; else among its DNS names.
    pub uri: bool,
    /// What it must be.
    pub value: ValueMatch,
}

/// Who is believed: the holder of a certificate that a root has signed, and that has one of the names, where there are any.
#[derive(Debug)]
pub struct PeerCheck {
    /// The roots.
    pub trust: Arc<SecretHandle>,
    /// Names; empty takes any.
    pub names: Box<[NameMatch]>,
    /// Clients must show a certificate; else they may.
    pub mandatory: bool,
    /// Peers that were read already.
    pub known: Arc<KnownPeers>,
}

impl PeerCheck {
    fn trust(&self) -> Result<Arc<Trust>, Error> {
        self.trust.trust().ok_or_else(|| Error::General(format!("no roots yet ({})", self.trust.name)))
    }

    fn check_names(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        // Read in any case: a certificate with odd names is nobody's.
        let peer = self.known.of(certificate, between).map_err(|error| Error::General(error.to_string()))?;
        let holds = |name: &NameMatch| {
            let among = if name.uri { &peer.uris } else { &peer.dns };
            among.iter().any(|text| name.value.holds(text.as_bytes()))
        };
        match self.names.is_empty() || self.names.iter().any(holds) {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }
}

impl ClientCertVerifier for PeerCheck {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // What an agent of the mesh shows doesn't depend on them.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trust()?.clients.verify_client_cert(certificate, intermediates, now)?;
        self.check_names(certificate, intermediates).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerCheck {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Names of the mesh are no host names: they are in `names`.
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        vouches_for_server(&self.trust()?.roots, certificate, intermediates, now)?;
        self.check_names(certificate, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(self)
    }
}

/// The handles of all names that listeners and clusters refer to.
#[derive(Debug)]
pub struct Secrets {
    named: Mutex<HashMap<Arc<str>, Arc<SecretHandle>>>,
    /// The workload's own certificate.
    pub own: Arc<SecretHandle>,
    /// The roots of the mesh.
    pub roots: Arc<SecretHandle>,
    /// The control plane tells the roots of the mesh as they change: what a certificate authority says of them besides may be older.
    told: AtomicBool,
    /// Peers that were read already.
    pub known: Arc<KnownPeers>,
}

/// What the workload's own certificate is called where SDS names it.
pub const OWN: &str = "default";
/// What the roots of the mesh are called there.
pub const ROOTS: &str = "ROOTCA";

impl Default for Secrets {
    fn default() -> Self {
        let (own, roots) = (SecretHandle::empty(OWN), SecretHandle::empty(ROOTS));
        let (told, known) = (AtomicBool::new(false), Arc::default());
        Self { named: Mutex::default(), own, roots, told, known }
    }
}

impl Secrets {
    /// Roots of the mesh that came with a certificate. False where they are not what holds.
    pub fn answer_roots(&self, roots: &Arc<Trust>) -> bool {
        let told = self.told.load(Ordering::Acquire);
        let current = self.roots.trust();
        if told || current.is_some_and(|current| current.is_same_as(roots)) {
            return false;
        }
        self.roots.publish(Secret::Trust(roots.clone()));
        true
    }

    /// Roots of the mesh as the control plane tells them.
    pub fn tell_roots(&self, roots: Arc<Trust>) {
        self.told.store(true, Ordering::Release);
        self.roots.publish(Secret::Trust(roots));
    }

    /// The control plane doesn't tell roots (any more): those that come with certificates hold.
    pub fn forget_told(&self) {
        self.told.store(false, Ordering::Release);
    }

    /// True where the workload's certificate is of the root that comes first, which is the one that signs.
    pub fn is_of_first_root(&self) -> bool {
        let (own, roots) = (self.own.certificate(), self.roots.trust());
        let vouching = own.zip(roots).and_then(|(own, roots)| roots.vouching(&own.cert, UnixTime::now()));
        vouching == Some(0)
    }

    /// True while the control plane tells the roots.
    pub fn are_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// The handle for `name`, made empty where it is missing.
    pub fn handle(&self, name: &str) -> Arc<SecretHandle> {
        let mut handles = self.named.lock();
        if let Some(found) = handles.get(name) {
            return found.clone();
        }
        let handle = SecretHandle::empty(name);
        handles.insert(handle.name.clone(), handle.clone());
        handle
    }

    /// Forgets `name`, unless a listener, or a connection that came by an old one, holds it.
    pub fn forget(&self, name: &str) {
        let mut handles = self.named.lock();
        if handles.get(name).is_some_and(|handle| Arc::strong_count(handle) == 1) {
            handles.remove(name);
        }
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
