//! TLS as filter chains and clusters have it: what is shown, and who is believed.
//!
//! Certificates and roots are no part of it: a chain or cluster holds [`SecretHandle`]s, and SDS, or the workload's own identity, swaps
//! what is inside. Each handshake takes what is in force then. Another certificate touches no connection that exists; one whose peer
//! no root vouches for any more is closed ([`Vouch`](crate::identity::vouch::Vouch)). Nothing is believed before the roots have come: a
//! handshake fails until then.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ResolvesClientCert, Resumption, Tls12Resumption, verify_server_cert_signed_by_trust_anchor,
    verify_server_name,
};
use rustls::crypto::aws_lc_rs;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use tokio::sync::Notify;

use super::route::{Text, ValueMatch};
use crate::identity::known::KnownPeers;
use crate::identity::peer::{Peer, fingerprint, hash};
use crate::identity::resumption::{Session, Sessions, Tickets};
use crate::identity::vouch::Before;

/// The cryptography of all TLS of ours.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// What a server speaks, shows, and asks of its clients. They may come back with tickets of it where `resumes` says so.
pub fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    certificate: Arc<SecretHandle>,
    check: Option<PeerCheck>,
    resumes: bool,
) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let trust = check.as_ref().and_then(|check| check.signer.roots().cloned());
    let builder = match check {
        Some(check) => builder.with_client_cert_verifier(Arc::new(check)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate.clone());
    // Sessions are kept by clients: no memory here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = usize::from(resumes);
    if resumes {
        config.ticketer = Tickets::new(trust, certificate)?;
    }
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
    // Where servers can be held against roots again there is a store for each connection (`ClientTls::config`).
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS of a filter chain, ready for handshakes.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// What is shown.
    own: Arc<SecretHandle>,
    /// Which clients are believed, where they are asked for a certificate.
    check: Option<PeerCheck>,
    /// For clients that offer protocols and none of ours: they get a session without one, as from Envoy.
    without_protocols: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS with one configuration, which shows `own` and believes clients by `check`.
    pub fn new(config: ServerConfig, own: Arc<SecretHandle>, check: Option<PeerCheck>) -> Self {
        let mut without = config.clone();
        without.alpn_protocols.clear();
        Self { config: Arc::new(config), own, check, without_protocols: Arc::new(without) }
    }

    /// A handshake begins; `None` where clients prove nothing.
    pub fn before(&self) -> Option<Before> {
        let roots = self.check.as_ref().and_then(|check| check.signer.roots());
        roots.map(|trust| Before::new(Role::Client, trust, Some(&self.own)))
    }

    /// Holds what a client showed when a session began, which it takes up again now, against what is in force.
    pub fn look_again(&self, shown: Option<&[CertificateDer<'_>]>) -> Result<(), Error> {
        match (&self.check, shown) {
            (None, _) => Ok(()),
            (Some(check), Some([leaf, between @ ..])) => {
                check.verify_client_cert(leaf, between, UnixTime::now()).map(|_| ())
            }
            (Some(check), _) if check.mandatory => Err(Error::NoCertificatesPresented),
            (Some(_), _) => Ok(()),
        }
    }

    /// The configuration for a client that offers these protocols.
    pub fn for_client(&self, offered: &[Arc<str>]) -> Arc<ServerConfig> {
        let ours = &self.config.alpn_protocols;
        let agree = offered.is_empty() || offered.iter().any(|p| ours.iter().any(|o| **o == *p.as_bytes()));
        if agree { self.config.clone() } else { self.without_protocols.clone() }
    }
}

/// A client's configuration, and whom it believes.
#[derive(Debug, Clone)]
pub struct Believing {
    /// What is offered.
    pub config: ClientConfig,
    /// The check that it has been given.
    pub check: PeerCheck,
}

/// TLS towards the endpoints of a cluster.
#[derive(Debug)]
pub struct ClientTls {
    opaque: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    asked: Asked,
    /// Which servers are believed, for opaque bytes and for HTTP.
    check: PeerCheck,
    http_check: PeerCheck,
    /// What is shown, where the server may ask for it.
    own: Option<Arc<SecretHandle>>,
    /// What servers gave us to come back with.
    sessions: Arc<Sessions>,
    /// What of it the control plane must be asked for.
    secrets: Box<[Arc<str>]>,
}

/// Whom connections ask for.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Nobody: the ClientHello names none.
    Nobody,
    /// Always this one.
    Always(ServerName<'static>),
    /// Whom each request is for; opaque bytes ask for nobody.
    ByRequest,
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
    /// TLS with one configuration for opaque bytes and one for HTTP. Where they offer `istio`, HTTP says its version as well, as
    /// between proxies of Istio.
    pub fn new(opaque: Believing, http: Believing, asked: Asked, own: Option<Arc<SecretHandle>>) -> Self {
        let Believing { config: http, check: http_check } = http;
        let Believing { config: opaque, check } = opaque;
        let mesh = http.alpn_protocols.iter().any(|protocol| protocol == MESH);
        let offering = |protocols: [&[u8]; 3]| {
            let mut offering = http.clone();
            offering.alpn_protocols = protocols.map(<[u8]>::to_vec).to_vec();
            Arc::new(offering)
        };
        let [http1, http2] = match mesh {
            true => [offering([b"istio-http/1.1", MESH, b"http/1.1"]), offering([b"istio-h2", MESH, b"h2"])],
            false => {
                let http = Arc::new(http);
                [http.clone(), http]
            }
        };
        Self {
            opaque: Arc::new(opaque),
            http1,
            http2,
            asked,
            check,
            http_check,
            own,
            sessions: Arc::default(),
            secrets: Box::default(),
        }
    }

    /// The same where some of it comes from the control plane, by these names.
    pub fn with_secrets(self, names: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { secrets: names.into_iter().collect(), ..self }
    }

    /// Names by which the control plane must be asked for some of it.
    pub fn secrets(&self) -> &[Arc<str>] {
        &self.secrets
    }

    /// Peers that were read already.
    pub fn known(&self) -> &KnownPeers {
        &self.check.known
    }

    /// The roots that vouch for the server, where they can change: such have a name.
    fn trust(&self) -> Option<&Arc<SecretHandle>> {
        self.check.signer.roots().filter(|roots| !roots.name.is_empty())
    }

    /// A handshake begins; `None` where the server isn't believed by roots, or by such as never change.
    pub fn before(&self) -> Option<Before> {
        self.trust().map(|trust| Before::new(Role::Server, trust, self.own.as_ref()))
    }

    /// A connection to `endpoint` begins: what it may take up again, and leaves. `None` where servers are believed by what never changes:
    /// there is a whole handshake each time.
    pub fn session(&self, endpoint: SocketAddr) -> Option<Arc<Session>> {
        let trust = self.trust()?;
        Some(Session::new(&self.sessions, endpoint, trust, self.own.as_ref()))
    }

    /// The configuration for a connection with this session.
    pub fn config(&self, within: Within, session: Option<&Arc<Session>>) -> Arc<ClientConfig> {
        let config = match within {
            Within::Opaque => &self.opaque,
            Within::Http1 => &self.http1,
            Within::Http2 => &self.http2,
        };
        let Some(session) = session else { return config.clone() };
        let mut config = ClientConfig::clone(config);
        config.resumption = Resumption::store(session.clone()).tls12_resumption(Tls12Resumption::Disabled);
        Arc::new(config)
    }

    /// Holds what a server showed when a session began, which it takes up again now, against what is in force.
    pub fn look_again(
        &self,
        within: Within,
        shown: Option<&[CertificateDer<'_>]>,
        asked: &ServerName<'_>,
    ) -> Result<(), Error> {
        let Some([leaf, between @ ..]) = shown else { return Err(Error::NoCertificatesPresented) };
        let check = if within == Within::Opaque { &self.check } else { &self.http_check };
        check.verify_server_cert(leaf, between, asked, &[], UnixTime::now()).map(|_| ())
    }

    /// True where each request says whom it asks for.
    pub fn asks_by_request(&self) -> bool {
        matches!(self.asked, Asked::ByRequest)
    }

    /// Whom a request to `authority` asks for, where connections differ by that: its host, without the port.
    pub fn asked_by(&self, authority: &[u8]) -> Option<Arc<str>> {
        if !self.asks_by_request() {
            return None;
        }
        let text = std::str::from_utf8(authority).unwrap_or_default();
        let host = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
            Some((ip, _)) => ip,
            None => text.split_once(':').map_or(text, |(host, _)| host),
        };
        Some(host.to_ascii_lowercase().into())
    }

    /// Whom a connection to `address` asks for; `request`: whom the request does. `None` where that is no name. Addresses are no names
    /// for a ClientHello: nothing is sent for them.
    pub fn server_name(
        &self,
        request: Option<&str>,
        address: std::net::IpAddr,
    ) -> Option<ServerName<'static>> {
        match (&self.asked, request) {
            (Asked::Always(name), _) => Some(name.clone()),
            (Asked::ByRequest, Some(name)) => ServerName::try_from(name.to_owned()).ok(),
            _ => Some(ServerName::IpAddress(IpAddr::from(address))),
        }
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
        Self::of(store, first)
    }

    /// Trust in those of the system's roots that can be used.
    pub fn in_system(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let (_, unusable) = store.add_parsable_certificates(roots);
        if unusable > 0 {
            tracing::debug!(unusable, "some of the system's roots are not used");
        }
        Self::of(store, None)
    }

    fn of(store: RootCertStore, first: Option<Box<str>>) -> Result<Self, String> {
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
            Role::Server => ParsedCertificate::try_from(leaf)
                .is_ok_and(|leaf| vouches_for_server(&self.roots, &leaf, between, time).is_ok()),
        }
    }

    /// The place of the root that vouches for a chain, as at `time`. Authorities tell first the root that signs.
    pub fn vouching(&self, chain: &[CertificateDer<'_>], time: UnixTime) -> Option<usize> {
        let [leaf, between @ ..] = chain else { return None };
        let leaf = ParsedCertificate::try_from(leaf).ok()?;
        self.roots.roots.iter().position(|root| {
            let only = RootCertStore { roots: vec![root.clone()] };
            vouches_for_server(&only, &leaf, between, time).is_ok()
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
    leaf: &ParsedCertificate<'_>,
    between: &[CertificateDer<'_>],
    time: UnixTime,
) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(leaf, roots, between, time, algorithms)
}

/// A name of which a certificate must have one.
#[derive(Debug)]
pub struct NameMatch {
    /// Among which of its names.
    pub kind: NameKind,
    /// What it must be.
    pub value: ValueMatch,
}

/// Kinds of names in certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// All of them.
    Any,
    /// URIs: workloads of a mesh.
    Uri,
    /// Host names; a wildcard in the certificate stands for one label.
    Dns,
    /// Mail addresses.
    Email,
    /// IP addresses.
    Ip,
}

impl NameMatch {
    /// For people.
    fn words(&self) -> String {
        let text = |text: &Text| String::from_utf8_lossy(&text.value).into_owned();
        match &self.value {
            ValueMatch::Exact(exact) => text(exact),
            ValueMatch::Prefix(prefix) => format!("{}…", text(prefix)),
            ValueMatch::Suffix(suffix) => format!("…{}", text(suffix)),
            ValueMatch::Contains(part) => format!("…{}…", text(part)),
            ValueMatch::Regex(_) | ValueMatch::Present(_) | ValueMatch::Range(..) => "a pattern".to_owned(),
        }
    }

    fn holds(&self, peer: &Peer) -> bool {
        self.holds_of(self.kind, peer)
    }

    fn holds_of(&self, kind: NameKind, peer: &Peer) -> bool {
        let any = |names: &[Arc<str>]| names.iter().any(|name| self.value.holds(name.as_bytes()));
        match (kind, &self.value) {
            (NameKind::Any, _) => {
                let kinds = [NameKind::Uri, NameKind::Dns, NameKind::Email, NameKind::Ip];
                kinds.into_iter().any(|kind| self.holds_of(kind, peer))
            }
            (NameKind::Uri, _) => any(&peer.uris),
            (NameKind::Email, _) => any(&peer.emails),
            (NameKind::Ip, _) => any(&peer.ips),
            (NameKind::Dns, ValueMatch::Exact(wanted)) => {
                peer.dns.iter().any(|name| covers(name, &wanted.value))
            }
            (NameKind::Dns, _) => any(&peer.dns),
        }
    }
}

/// Whether a host name of a certificate means `host`: the same but for case, or with `*` for the first label.
fn covers(name: &str, host: &[u8]) -> bool {
    if name.as_bytes().eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(parent) = name.strip_prefix("*.") else { return false };
    let Some(dot) = host.iter().position(|byte| *byte == b'.').filter(|dot| *dot > 0) else { return false };
    parent.contains('.') && parent.as_bytes().eq_ignore_ascii_case(&host[dot + 1..])
}

/// Whom peers must be signed by.
#[derive(Debug, Clone)]
pub enum Signer {
    /// One of these roots.
    Roots(Arc<SecretHandle>),
    /// Anybody.
    Anybody,
}

impl Signer {
    /// The roots, where not anybody signs.
    pub fn roots(&self) -> Option<&Arc<SecretHandle>> {
        match self {
            Self::Roots(roots) => Some(roots),
            Self::Anybody => None,
        }
    }
}

/// Who is believed: the holder of a certificate that a root has signed, and that has one of the names, where there are any.
#[derive(Debug, Clone)]
pub struct PeerCheck {
    /// Who has signed it.
    pub signer: Signer,
    /// Names; empty takes any.
    pub names: Arc<[NameMatch]>,
    /// The certificate must have the name that the connection asked for, too.
    pub asked: bool,
    /// Clients must show a certificate; else they may.
    pub mandatory: bool,
    /// Peers that were read already.
    pub known: Arc<KnownPeers>,
}

/// What a certificate lacks.
#[derive(Debug, thiserror::Error)]
enum Lacks {
    #[error("its names are {has}, and none of them is one of {wanted} (SAN)")]
    Name { has: String, wanted: String },
    #[error("it is not for {0} (SAN)")]
    Host(String),
    #[error("it can't be read")]
    Form,
}

impl Lacks {
    fn into_error(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

impl PeerCheck {
    /// The roots; `None` where anybody is believed.
    fn trust(&self) -> Result<Option<Arc<Trust>>, Error> {
        let Some(roots) = self.signer.roots() else { return Ok(None) };
        match roots.trust() {
            Some(trust) => Ok(Some(trust)),
            None => Err(Error::General(format!("no roots yet ({})", roots.name))),
        }
    }

    fn check_names(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        // Read in any case: a certificate with odd names is nobody's.
        let peer = self.known.of(certificate, between).map_err(|error| Error::General(error.to_string()))?;
        if self.names.is_empty() || self.names.iter().any(|name| name.holds(&peer)) {
            return Ok(());
        }
        let wanted: Vec<_> = self.names.iter().map(NameMatch::words).collect();
        let has: Vec<&str> = peer.names().collect();
        Err(Lacks::Name { has: has.join(", "), wanted: wanted.join(", ") }.into_error())
    }

    fn check_asked(&self, certificate: &ParsedCertificate<'_>, asked: &ServerName<'_>) -> Result<(), Error> {
        if !self.asked {
            return Ok(());
        }
        verify_server_name(certificate, asked)
            .map_err(|_| Lacks::Host(asked.to_str().into_owned()).into_error())
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
        if let Some(trust) = self.trust()? {
            trust.clients.verify_client_cert(certificate, intermediates, now)?;
        }
        self.check_names(certificate, intermediates).map(|()| ClientCertVerified::assertion())
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
        asked: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trust = self.trust()?;
        if trust.is_none() && self.names.is_empty() && !self.asked {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Lacks::Form.into_error())?;
        if let Some(trust) = trust {
            vouches_for_server(&trust.roots, &parsed, intermediates, now)?;
        }
        self.check_asked(&parsed, asked)?;
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
    files: Mutex<HashMap<Arc<str>, Arc<SecretHandle>>>,
    /// Hears of each new name among the files.
    pub files_added: Notify,
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
        Self {
            named: Mutex::default(),
            files: Mutex::default(),
            files_added: Notify::new(),
            own: SecretHandle::empty(OWN),
            roots: SecretHandle::empty(ROOTS),
            told: AtomicBool::new(false),
            known: Arc::default(),
        }
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
        find_or_add(&mut self.named.lock(), name).0
    }

    /// The handle for files by the name that SDS has for them, made empty where it is missing. Who reads them is told.
    pub fn file(&self, name: &str) -> Arc<SecretHandle> {
        let (handle, is_new) = find_or_add(&mut self.files.lock(), name);
        if is_new {
            self.files_added.notify_one();
        }
        handle
    }

    /// The handles of all files that a cluster or listener holds. Others are forgotten.
    pub fn files(&self) -> Vec<Arc<SecretHandle>> {
        let mut files = self.files.lock();
        files.retain(|_, handle| Arc::strong_count(handle) > 1);
        files.values().cloned().collect()
    }

    /// Forgets `name`, unless a listener, or a connection that came by an old one, holds it.
    pub fn forget(&self, name: &str) {
        let mut handles = self.named.lock();
        if handles.get(name).is_some_and(|handle| Arc::strong_count(handle) == 1) {
            handles.remove(name);
        }
    }
}

fn find_or_add(handles: &mut HashMap<Arc<str>, Arc<SecretHandle>>, name: &str) -> (Arc<SecretHandle>, bool) {
    if let Some(found) = handles.get(name) {
        return (found.clone(), false);
    }
    let handle = SecretHandle::empty(name);
    handles.insert(handle.name.clone(), handle.clone());
    (handle, true)
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
