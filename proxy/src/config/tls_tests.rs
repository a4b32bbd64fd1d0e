//! Who is believed, and what a swap changes: handshakes in memory.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};

use super::*;
use crate::config::route::Text;

fn certificate() -> (Arc<CertifiedKey>, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
    let der = certificate.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let certified = CertifiedKey::from_der(vec![der.clone()], key, &aws_lc_rs::default_provider());
    (Arc::new(certified.unwrap()), der)
}

fn server(handle: &Arc<SecretHandle>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_cert_resolver(handle.clone()))
}

fn client(roots: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).unwrap());
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    // Who resumes a session goes by the certificate that it saw then.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

type Pair = (ServerConnection, ClientConnection);

fn carry(pair: &mut Pair) -> Result<(), rustls::Error> {
    while pair.0.wants_write() || pair.1.wants_write() {
        step(pair)?;
    }
    Ok(())
}

/// What the client has to say, and what the server says to that.
fn step((server, client): &mut Pair) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    server.read_tls(&mut &bytes[..]).unwrap();
    let done = server.process_new_packets();
    bytes.clear();
    server.write_tls(&mut bytes).unwrap();
    client.read_tls(&mut &bytes[..]).unwrap();
    client.process_new_packets()?;
    done.map(|_| ())
}

fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Pair, rustls::Error> {
    let name = ServerName::try_from("a.example").unwrap();
    let mut pair = (
        ServerConnection::new(server.clone()).unwrap(),
        ClientConnection::new(client.clone(), name).unwrap(),
    );
    carry(&mut pair).map(|()| pair)
}

fn shown((_, client): &Pair) -> CertificateDer<'static> {
    client.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_swap_changes_new_connections_only() {
    let ((old, old_der), (new, new_der)) = (certificate(), certificate());
    let handles = Secrets::default();
    let handle = handles.handle("x");
    let (server, client) = (server(&handle), client(&[old_der.clone(), new_der.clone()]));
    assert!(handshake(&server, &client).is_err(), "there is no certificate yet");
    handle.publish(Secret::Certificate(old));
    let mut before = handshake(&server, &client).unwrap();
    assert_eq!(shown(&before), old_der);
    handles.handle("x").publish(Secret::Certificate(new));
    assert_eq!(shown(&handshake(&server, &client).unwrap()), new_der);
    before.1.writer().write_all(b"still here").unwrap();
    carry(&mut before).unwrap();
    let mut got = [0; 10];
    before.0.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    handles.forget("x");
    assert!(Arc::ptr_eq(&handles.handle("x"), &handle), "a listener holds it");
}

#[test]
fn swaps_under_load_fail_no_handshake() {
    let ((old, old_der), (new, new_der)) = (certificate(), certificate());
    let handle = SecretHandle::new("x", Secret::Certificate(old.clone()));
    let (server, client) = (server(&handle), client(&[old_der.clone(), new_der.clone()]));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                handle.publish(Secret::Certificate(new.clone()));
                handle.publish(Secret::Certificate(old.clone()));
            }
        });
        for _ in 0..100 {
            let shown = handshake(&server, &client).map(|pair| shown(&pair));
            assert!(shown.is_ok_and(|shown| shown == old_der || shown == new_der));
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// A root that signs for workloads.
struct Root {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Root {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(parameters, key), certificate }
    }

    fn trust(&self) -> Secret {
        Secret::Trust(Arc::new(Trust::new([self.certificate.clone()]).unwrap()))
    }

    /// A certificate that names `uri`, with an end that is `seconds` from now.
    fn workload(&self, uri: &str, seconds: i64, usage: ExtendedKeyUsagePurpose) -> Secret {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.extended_key_usages = vec![usage];
        let now = std::time::SystemTime::now();
        let end = match u64::try_from(seconds) {
            Ok(later) => now + Duration::from_secs(later),
            Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        parameters.not_before = (now - Duration::from_secs(3600)).into();
        parameters.not_after = end.into();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider());
        Secret::Certificate(Arc::new(certified.unwrap()))
    }
}

fn uri(value: ValueMatch) -> Arc<[NameMatch]> {
    Arc::new([NameMatch { kind: NameKind::Uri, value }])
}

fn text(value: &str) -> Text {
    Text { value: value.as_bytes().into(), ignore_case: false }
}

/// Whoever has been signed, under any name.
fn check(signer: Signer) -> PeerCheck {
    PeerCheck { signer, names: Arc::default(), asked: false, mandatory: false, known: Arc::default() }
}

/// A server that takes clients of `cluster.local`, whom `roots` vouches for.
fn mesh_server(own: Secret, roots: &Arc<SecretHandle>, mandatory: bool) -> Arc<ServerConfig> {
    let names = uri(ValueMatch::Prefix(text("spiffe://cluster.local/")));
    let check = PeerCheck { names, mandatory, ..check(Signer::Roots(roots.clone())) };
    Arc::new(server_config(&[&TLS13, &TLS12], SecretHandle::new("", own), Some(check), true).unwrap())
}

/// A client that wants to reach `spiffe`.
fn mesh_client(own: Option<Secret>, roots: &Arc<SecretHandle>, spiffe: &str) -> Arc<ClientConfig> {
    let names = uri(ValueMatch::Exact(text(spiffe)));
    let check = PeerCheck { names, ..check(Signer::Roots(roots.clone())) };
    let own = own.map(|own| SecretHandle::new("", own));
    Arc::new(client_config(&[&TLS13, &TLS12], own, check).unwrap())
}

const WEB: &str = "spiffe://cluster.local/ns/a/sa/web";
const API: &str = "spiffe://cluster.local/ns/a/sa/api";
const DAY: i64 = 24 * 3600;

#[test]
fn both_ends_believe_whom_the_root_vouches_for_under_the_right_name() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (root, other) = (Root::new(), Root::new());
    let roots = SecretHandle::new("ROOTCA", root.trust());
    let server = mesh_server(root.workload(API, DAY, ServerAuth), &roots, true);
    let client = |own| mesh_client(own, &roots, API);
    let web = |seconds| Some(root.workload(WEB, seconds, ClientAuth));
    let cases = [
        ("both are right", &server, client(web(DAY)), true),
        ("no certificate", &server, client(None), false),
        ("expired", &server, client(web(-60)), false),
        ("foreign root", &server, client(Some(other.workload(WEB, DAY, ClientAuth))), false),
        (
            "foreign trust domain",
            &server,
            client(Some(root.workload("spiffe://elsewhere/ns/a/sa/web", DAY, ClientAuth))),
            false,
        ),
        (
            "a trust domain that begins alike",
            &server,
            client(Some(root.workload("spiffe://cluster.local.evil/ns/a/sa/web", DAY, ClientAuth))),
            false,
        ),
        ("no certificate for clients", &server, client(Some(root.workload(WEB, DAY, ServerAuth))), false),
        ("the server is another", &server, mesh_client(web(DAY), &roots, WEB), false),
        (
            "odd bytes in a name",
            &server,
            client(Some(root.workload("spiffe://cluster.local/ns/a\0/sa/web", DAY, ClientAuth))),
            false,
        ),
        (
            "the server's certificate is for clients",
            &mesh_server(root.workload(API, DAY, ClientAuth), &roots, true),
            client(web(DAY)),
            false,
        ),
        (
            "the server has ended",
            &mesh_server(root.workload(API, -60, ServerAuth), &roots, true),
            client(web(DAY)),
            false,
        ),
        (
            "the server is of a foreign root",
            &mesh_server(other.workload(API, DAY, ServerAuth), &roots, true),
            client(web(DAY)),
            false,
        ),
        (
            "a certificate is not asked for",
            &mesh_server(root.workload(API, DAY, ServerAuth), &roots, false),
            client(None),
            true,
        ),
        (
            "not asked for, and wrong",
            &mesh_server(root.workload(API, DAY, ServerAuth), &roots, false),
            client(web(-60)),
            false,
        ),
    ];
    for (case, server, client, good) in cases {
        assert_eq!(handshake(server, &client).is_ok(), good, "{case}");
    }
}

#[test]
fn nobody_is_believed_before_the_roots_have_come_nor_by_a_root_that_has_gone() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (root, next) = (Root::new(), Root::new());
    let (of_server, of_client) = (SecretHandle::empty("ROOTCA"), SecretHandle::new("ROOTCA", root.trust()));
    let server = mesh_server(root.workload(API, DAY, ServerAuth), &of_server, true);
    let client = mesh_client(Some(root.workload(WEB, DAY, ClientAuth)), &of_client, API);
    assert!(handshake(&server, &client).is_err(), "the server has no roots");
    of_server.publish(root.trust());
    assert!(handshake(&server, &client).is_ok());
    let both = Trust::new([root.certificate.clone(), next.certificate.clone()]).unwrap();
    of_server.publish(Secret::Trust(Arc::new(both)));
    assert!(handshake(&server, &client).is_ok(), "old and new overlap");
    of_server.publish(next.trust());
    assert!(handshake(&server, &client).is_err(), "the old root is gone");
}

/// Both ends of a mesh, each of which may change what it goes by.
struct Mesh {
    root: Root,
    server: ServerTls,
    server_roots: Arc<SecretHandle>,
    client: ClientTls,
    client_roots: Arc<SecretHandle>,
    client_own: Arc<SecretHandle>,
}

const HERE: &str = "192.0.2.1:1";

impl Mesh {
    fn new(version: &'static SupportedProtocolVersion, resumes: bool) -> Self {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let root = Root::new();
        let [server_roots, client_roots] = [(); 2].map(|()| SecretHandle::new(ROOTS, root.trust()));
        let own = SecretHandle::new(OWN, root.workload(API, DAY, ServerAuth));
        let names = uri(ValueMatch::Prefix(text("spiffe://cluster.local/")));
        let check = PeerCheck { names, mandatory: true, ..check(Signer::Roots(server_roots.clone())) };
        let config = server_config(&[version], own.clone(), Some(check.clone()), resumes).unwrap();
        let server = ServerTls::new(config, own, Some(check));
        let client_own = SecretHandle::new(OWN, root.workload(WEB, DAY, ClientAuth));
        let names = uri(ValueMatch::Exact(text(API)));
        let check = PeerCheck { names, ..self::check(Signer::Roots(client_roots.clone())) };
        let config = client_config(&[version], Some(client_own.clone()), check.clone()).unwrap();
        let believing = Believing { config, check };
        let client = ClientTls::new(believing.clone(), believing, Asked::Nobody, Some(client_own.clone()));
        Self { root, server, server_roots, client, client_roots, client_own }
    }

    /// Opens a connection as `upstream::connect` does, until the server's ticket has come; its certificate ends in so many seconds.
    /// `early`: the ticket comes before the server is believed.
    fn connect(&self, server: &ServerTls, endpoint: &str, ends: i64, early: bool) -> Option<HandshakeKind> {
        let session = self.client.session(endpoint.parse().unwrap()).unwrap();
        let config = self.client.config(Within::Opaque, Some(&session));
        let name = ServerName::try_from("a.example").unwrap();
        let mut pair = (
            ServerConnection::new(server.for_client(&[])).unwrap(),
            ClientConnection::new(config, name).unwrap(),
        );
        while pair.1.is_handshaking() {
            step(&mut pair).unwrap();
        }
        if early {
            carry(&mut pair).unwrap();
        }
        session.is_believed_until(i64::try_from(UnixTime::now().as_secs()).unwrap() + ends);
        carry(&mut pair).unwrap();
        let name = |chain: Option<&[CertificateDer<'_>]>| Peer::of(&chain.unwrap()[0]).unwrap().to_string();
        assert_eq!([name(pair.1.peer_certificates()), name(pair.0.peer_certificates())], [API, WEB]);
        pair.1.handshake_kind()
    }
}

#[test]
fn a_session_is_taken_up_while_both_ends_go_by_the_same() {
    use HandshakeKind::{Full, Resumed};
    let (mesh, other) = (Mesh::new(&TLS13, true), Mesh::new(&TLS13, true));
    other.server_roots.publish(mesh.root.trust());
    other.server.own.publish(mesh.root.workload(API, DAY, ExtendedKeyUsagePurpose::ServerAuth));
    let nothing = || {};
    let other_certificate =
        || mesh.client_own.publish(mesh.root.workload(WEB, DAY, ExtendedKeyUsagePurpose::ClientAuth));
    let other_certificate_there =
        || mesh.server.own.publish(mesh.root.workload(API, DAY, ExtendedKeyUsagePurpose::ServerAuth));
    let other_roots_there = || mesh.server_roots.publish(mesh.root.trust());
    let other_roots_here = || mesh.client_roots.publish(mesh.root.trust());
    /// What it is, what changes before it, where the client goes, and what handshake there is.
    type Step<'a> = (&'a str, &'a dyn Fn(), &'a ServerTls, &'a str, HandshakeKind);
    let steps: [Step<'_>; 14] = [
        ("there is nothing yet", &nothing, &mesh.server, HERE, Full),
        ("nothing has changed", &nothing, &mesh.server, HERE, Resumed),
        ("a ticket is for once, and each connection leaves one", &nothing, &mesh.server, HERE, Resumed),
        ("another endpoint", &nothing, &mesh.server, "192.0.2.1:2", Full),
        ("another certificate of the client's", &other_certificate, &mesh.server, HERE, Full),
        ("it has been believed with that", &nothing, &mesh.server, HERE, Resumed),
        ("other roots at the client", &other_roots_here, &mesh.server, HERE, Full),
        ("it has believed by those", &nothing, &mesh.server, HERE, Resumed),
        ("other roots at the server", &other_roots_there, &mesh.server, HERE, Full),
        ("it has believed by those", &nothing, &mesh.server, HERE, Resumed),
        ("another certificate of the server's", &other_certificate_there, &mesh.server, HERE, Full),
        ("it has shown that", &nothing, &mesh.server, HERE, Resumed),
        ("another TLS context of the server's", &nothing, &other.server, HERE, Full),
        ("that has left a ticket of its own", &nothing, &other.server, HERE, Resumed),
    ];
    for (number, (case, change, server, endpoint, wanted)) in steps.into_iter().enumerate() {
        change();
        assert_eq!(mesh.connect(server, endpoint, DAY, number % 2 == 0), Some(wanted), "{case}");
    }
}

#[test]
fn no_session_is_taken_up_where_that_is_off_or_the_version_is_old_or_the_server_has_ended() {
    for (version, resumes, ends) in [(&TLS12, true, DAY), (&TLS13, false, DAY), (&TLS13, true, -1)] {
        let mesh = Mesh::new(version, resumes);
        for _ in 0..2 {
            let kind = mesh.connect(&mesh.server, HERE, ends, false);
            assert_eq!(kind, Some(HandshakeKind::Full), "{version:?} {resumes} {ends}");
        }
    }
}

/// What a session keeps of a peer is worth what it would be worth if it were shown now.
#[test]
fn who_comes_back_is_looked_at_again() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (mesh, foreign) = (Mesh::new(&TLS13, true), Root::new());
    let of = |secret| match secret {
        Secret::Certificate(certified) => certified.cert.clone(),
        Secret::Trust(_) => unreachable!("a workload has a certificate"),
    };
    let asked = ServerName::try_from("a.example").unwrap();
    for (case, root, name, ends, good) in [
        ("as it was", &mesh.root, [WEB, API], DAY, true),
        ("it has ended", &mesh.root, [WEB, API], -60, false),
        ("its root has gone", &foreign, [WEB, API], DAY, false),
        ("of another name", &mesh.root, ["spiffe://other/ns/a/sa/web", WEB], DAY, false),
    ] {
        let client = of(root.workload(name[0], ends, ClientAuth));
        assert_eq!(mesh.server.look_again(Some(&client)).is_ok(), good, "a client: {case}");
        let server = of(root.workload(name[1], ends, ServerAuth));
        for within in [Within::Opaque, Within::Http1] {
            let again = mesh.client.look_again(within, Some(&server), &asked);
            assert_eq!(again.is_ok(), good, "a server: {case}");
        }
    }
    assert!(
        mesh.server.look_again(None).is_err()
            && mesh.client.look_again(Within::Opaque, None, &asked).is_err()
    );
}

#[test]
fn who_offers_none_of_our_protocols_gets_a_session_without() {
    let (own, der) = certificate();
    let mut config = Arc::unwrap_or_clone(server(&SecretHandle::new("", Secret::Certificate(own))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = ServerTls::new(config, SecretHandle::empty(""), None);
    for (offered, agreed) in [
        (vec!["istio", "h2"], Some(&b"h2"[..])),
        (vec!["istio-http/1.1", "istio", "http/1.1"], Some(b"http/1.1")),
        (vec!["istio-peer-exchange", "istio"], None),
        (vec![], None),
    ] {
        let mut config = Arc::unwrap_or_clone(client(std::slice::from_ref(&der)));
        config.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let offered: Vec<Arc<str>> = offered.iter().map(|protocol| Arc::from(*protocol)).collect();
        let pair = handshake(&tls.for_client(&offered), &Arc::new(config)).unwrap();
        assert_eq!(pair.0.alpn_protocol(), agreed, "{offered:?}");
    }
}

/// A server outside, with these names in its certificate, and a client with this check.
fn outside(names: Vec<SanType>, check: impl FnOnce(Signer) -> PeerCheck, asked: &str) -> Result<(), String> {
    let root = Root::new();
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = names;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.signed_by(&key, &root.issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let own = CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider()).unwrap();
    let own = SecretHandle::new("", Secret::Certificate(Arc::new(own)));
    let server = Arc::new(server_config(&[&TLS13], own, None, true).unwrap());
    let check = check(Signer::Roots(SecretHandle::new("", root.trust())));
    let client = Arc::new(client_config(&[&TLS13], None, check).unwrap());
    let mut pair = (
        ServerConnection::new(server).unwrap(),
        ClientConnection::new(client, ServerName::try_from(asked.to_owned()).unwrap()).unwrap(),
    );
    carry(&mut pair).map_err(|error| match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.to_string(),
        other => other.to_string(),
    })
}

#[test]
fn names_of_each_kind_are_looked_for_among_their_own() {
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let all = || {
        vec![
            dns("a.example"),
            dns("*.b.example"),
            SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()),
            SanType::Rfc822Name("root@c.example".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
        ]
    };
    use NameKind::{Any, Dns, Email, Ip, Uri};
    for (kind, wanted, good) in [
        (Dns, "a.example", true),
        (Dns, "A.Example", true),
        (Dns, "x.b.example", true),
        (Dns, "x.y.b.example", false),
        (Dns, "b.example", false),
        (Dns, ".b.example", false),
        (Dns, "spiffe://td/ns/a/sa/b", false),
        (Uri, "spiffe://td/ns/a/sa/b", true),
        (Uri, "spiffe://td/ns/a/sa/B", false),
        (Uri, "a.example", false),
        (Email, "root@c.example", true),
        (Email, "a.example", false),
        (Ip, "192.0.2.7", true),
        (Ip, "192.0.2.8", false),
        (Any, "192.0.2.7", true),
        (Any, "x.b.example", true),
        (Any, "spiffe://td/ns/a/sa/b", true),
        (Any, "d.example", false),
    ] {
        let names: Arc<[NameMatch]> = Arc::new([NameMatch { kind, value: ValueMatch::Exact(text(wanted)) }]);
        let check = |signer| PeerCheck { names, ..check(signer) };
        let outcome = outside(all(), check, "a.example");
        assert_eq!(outcome.is_ok(), good, "{kind:?} {wanted}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.contains(&format!("none of them is one of {wanted} (SAN)")), "{error}");
        }
    }
}

#[test]
fn a_server_must_be_for_whom_it_is_asked_where_that_is_wanted() {
    let names = || vec![SanType::DnsName("a.example".try_into().unwrap())];
    let check = |asked| move |signer| PeerCheck { asked, ..check(signer) };
    assert_eq!(outside(names(), check(true), "a.example"), Ok(()));
    assert_eq!(outside(names(), check(false), "b.example"), Ok(()));
    assert_eq!(outside(names(), check(true), "b.example"), Err("it is not for b.example (SAN)".to_owned()));
    assert_eq!(outside(names(), check(true), "192.0.2.1"), Err("it is not for 192.0.2.1 (SAN)".to_owned()));
    assert_eq!(outside(names(), |_| self::check(Signer::Anybody), "b.example"), Ok(()));
}
