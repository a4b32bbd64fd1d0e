//! Signs certificates: of workloads, as their callers have proved to be, and of the control plane's own servers.
//!
//! Where certificates and key are kept is known elsewhere. Of a request only the key counts; its names and extensions are read by
//! nobody. An authority has shown that it is believed before it signs for anybody: what it signs must lead to one of its roots.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;

/// How long a root made here lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a server's certificate lives.
pub const SERVER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Servers' certificates are valid from a little earlier, for whoever's clock is late.
const EARLIER: Duration = Duration::from_secs(600);
/// Those of workloads, as with Istio.
const WORKLOAD_EARLIER: Duration = Duration::from_secs(120);
/// How long a workload's certificate lives where nothing is asked.
pub const WORKLOAD_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The most that can be asked for.
pub const LONGEST_WORKLOAD_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// A request with a key of 4,096 bits has less than 2 KiB.
const MAX_REQUEST: usize = 16 * 1024;
/// More between a leaf and a root than peers follow: with the leaf's own they look at six signatures.
const MOST_BETWEEN: usize = 5;

/// What an authority is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The certificate that signs.
    Certificate,
    /// Its key.
    Key,
    /// The certificates between it and a root.
    Chain,
    /// The roots.
    Roots,
}

/// Why nothing can be signed with what is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} {reason}")]
pub struct Unusable {
    /// What is at fault.
    pub part: Part,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "the certificate",
            Self::Key => "the key",
            Self::Chain => "the chain",
            Self::Roots => "the roots:",
        })
    }
}

impl Part {
    fn is(self, reason: impl Into<String>) -> Unusable {
        Unusable { part: self, reason: reason.into() }
    }
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is at fault.
    #[error("the request {0}")]
    Request(String),
    /// More is asked for than anybody gets.
    #[error("a certificate for {asked:?} is asked for; {LONGEST_WORKLOAD_LIFE:?} is the most")]
    TooLong {
        /// What was asked for.
        asked: Duration,
    },
    /// The authority's own certificate has ended.
    #[error("the certificate of the authority has ended")]
    Ended,
    /// Signing fails.
    #[error("a certificate can't be made: {0}")]
    Issue(#[from] rcgen::Error),
}

/// What an authority is made of, as PEM.
#[derive(Clone)]
pub struct Material {
    /// The certificate that signs; what follows it counts as chain.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The certificates between it and a root. It may be among them, and roots may.
    pub chain: String,
    /// All that shall be believed.
    pub roots: String,
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What is shown behind a leaf: the certificate that signs, then those between it and a root. None where a root signs.
    between: Vec<String>,
    roots: String,
    /// The same as peers know them; first the one that vouches for what is signed.
    anchors: Vec<TrustAnchor<'static>>,
    /// The life of what vouches, in seconds since 1970: of the certificate that signs, and no longer than the others hold.
    not_before: i64,
    not_after: i64,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// The authority of a root and its key, both PEM.
    pub fn new(root: String, key: &str) -> Result<Self, Unusable> {
        let roots = root.clone();
        Self::of(&Material { certificate: root, key: key.to_owned(), chain: String::new(), roots })
    }

    /// The authority of a certificate that leads to one of several roots.
    pub fn of(material: &Material) -> Result<Self, Unusable> {
        let now = ASN1Time::now();
        let key = read_key(&material.key)?;
        let mut signing = read(Part::Certificate, &material.certificate)?.into_iter();
        let certificate = signing.next().ok_or_else(|| Part::Certificate.is("is no PEM"))?;
        let mut life = check_signing(&certificate, &key, now)?;
        let roots = roots(&material.roots, now)?;
        let given = signing.chain(read(Part::Chain, &material.chain)?);
        let between = between(certificate.clone(), given, &roots)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| Part::Certificate.is(format!("can't be read: {error}")))?;
        for certificate in &between {
            life.1 = life.1.min(life_of(Part::Chain, certificate)?.1);
        }
        let first = vouching(&issuer, &between, &roots)?;
        life.1 = life.1.min(life_of(Part::Roots, &roots[first].0)?.1);
        // The one that vouches comes first: who is told of the roots sees when another one begins to.
        let order = std::iter::once(first).chain((0..roots.len()).filter(|index| *index != first));
        let (roots, anchors): (Vec<_>, Vec<_>) = order.map(|index| roots[index].clone()).unzip();
        Ok(Self {
            issuer,
            between: between.iter().map(pem).collect(),
            roots: roots.iter().map(pem).collect(),
            anchors,
            not_before: life.0,
            not_after: life.1,
        })
    }

    /// All roots of the mesh, as PEM; first the one that vouches for what is signed here.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// How many roots there are.
    pub fn count_of_roots(&self) -> usize {
        self.anchors.len()
    }

    /// True where whoever believes `other` believes what is signed here.
    pub fn is_believed_by_those_of(&self, other: &Self) -> bool {
        self.anchors.first().is_some_and(|own| other.anchors.contains(own))
    }

    /// True where nobody can tell them apart.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let parts = |a: &Self| (a.between.clone(), a.roots.clone(), a.issuer.key().public_key_pem());
        parts(self) == parts(other)
    }

    /// When what vouches began and when it ends, in seconds since 1970.
    pub fn life(&self) -> (i64, i64) {
        (self.not_before, self.not_after)
    }

    /// Certificate chain and key, both PEM, of a server of these names and addresses, valid for [`SERVER_LIFE`].
    pub fn server(&self, names: &[String]) -> Result<(String, String), SignError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(names.to_vec())?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        valid(&mut parameters, EARLIER, SERVER_LIFE.min(self.left()?));
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem() + &self.between.concat(), key.serialize_pem()))
    }

    /// A certificate for the key of `csr` (PKCS#10, PEM) that names `spiffe`: the certificate, those between it and a root one by
    /// one, then all roots in one string; PEM each. `life`: what is asked for; `None` for the default.
    pub fn workload(
        &self,
        csr: &str,
        spiffe: &str,
        life: Option<Duration>,
    ) -> Result<Vec<String>, SignError> {
        let key = key_of(csr).map_err(SignError::Request)?;
        let life = life.unwrap_or(WORKLOAD_LIFE);
        if life > LONGEST_WORKLOAD_LIFE {
            return Err(SignError::TooLong { asked: life });
        }
        let mut parameters =
            leaf(&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
        parameters.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        valid(&mut parameters, WORKLOAD_EARLIER, life.min(self.left()?));
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let between = self.between.iter().cloned();
        Ok(std::iter::once(certificate.pem()).chain(between).chain([self.roots.clone()]).collect())
    }

    /// How long it signs yet.
    pub fn left(&self) -> Result<Duration, SignError> {
        let left = self.not_after - ASN1Time::now().timestamp();
        let left = u64::try_from(left).ok().filter(|left| *left > 0).ok_or(SignError::Ended)?;
        Ok(Duration::from_secs(left))
    }
}

/// A certificate that may sign nothing, with no name yet.
fn leaf(uses: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = uses.to_vec();
    parameters.serial_number = Some(serial());
    // Who knows two roots of one name tells by it which has signed.
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

type Der = CertificateDer<'static>;

fn read(part: Part, text: &str) -> Result<Vec<Der>, Unusable> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    read.map_err(|error| part.is(format!("is no PEM: {error}")))
}

fn read_key(text: &str) -> Result<KeyPair, Unusable> {
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| Part::Key.is(format!("is no PEM: {error}")))?;
    KeyPair::try_from(&key).map_err(|error| Part::Key.is(format!("can't be read: {error}")))
}

fn parse<'a>(part: Part, der: &'a Der) -> Result<X509Certificate<'a>, Unusable> {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.map(|(_, certificate)| certificate).map_err(|error| part.is(format!("can't be read: {error}")))
}

fn pem(der: &Der) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// From when to when a certificate holds, in seconds since 1970.
fn life_of(part: Part, der: &Der) -> Result<(i64, i64), Unusable> {
    let certificate = parse(part, der)?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The certificate that signs must be one that may, now, and be the key's. Its life.
fn check_signing(der: &Der, key: &KeyPair, now: ASN1Time) -> Result<(i64, i64), Unusable> {
    let certificate = parse(Part::Certificate, der)?;
    if !certificate.is_ca() {
        return Err(Part::Certificate.is("is no certificate of an authority"));
    }
    let usage = certificate.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(Part::Certificate.is("may not sign certificates (keyCertSign)"));
    }
    let validity = certificate.validity();
    if validity.not_after < now {
        return Err(Part::Certificate.is(format!("ended at {}", validity.not_after)));
    }
    if validity.not_before > now {
        return Err(Part::Certificate.is(format!("begins at {}", validity.not_before)));
    }
    if certificate.public_key().subject_public_key.data != key.der_bytes() {
        return Err(Part::Key.is("is not that of the certificate"));
    }
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Each root with what peers know of it. One that has ended is left out: peers would go on to believe it, since of a root they look
/// at name and key alone.
fn roots(text: &str, now: ASN1Time) -> Result<Vec<(Der, TrustAnchor<'static>)>, Unusable> {
    let mut found = Vec::new();
    for der in read(Part::Roots, text)? {
        let certificate = parse(Part::Roots, &der)?;
        if !certificate.is_ca() {
            return Err(Part::Roots.is("one is no certificate of an authority"));
        }
        if certificate.validity().not_after < now {
            tracing::warn!(root = %certificate.subject(), "a root has ended, and nobody is told to believe it");
            continue;
        }
        let mut store = RootCertStore::empty();
        store.add(der.clone()).map_err(|error| Part::Roots.is(format!("one can't be read: {error}")))?;
        let anchors = store.roots.into_iter().map(|anchor| (der.clone(), anchor));
        found.extend(anchors);
    }
    if found.is_empty() {
        return Err(Part::Roots.is("there is none that holds now"));
    }
    Ok(found)
}

/// What is shown behind a leaf: the signing certificate and what was given with it, each once, and no root.
fn between(
    signing: Der,
    given: impl Iterator<Item = Der>,
    roots: &[(Der, TrustAnchor<'static>)],
) -> Result<Vec<Der>, Unusable> {
    let mut between: Vec<Der> = Vec::new();
    for certificate in std::iter::once(signing).chain(given) {
        let is_root = roots.iter().any(|(root, _)| *root == certificate) || is_self_signed(&certificate)?;
        if !is_root && !between.contains(&certificate) {
            between.push(certificate);
        }
    }
    match between.len() {
        0..=MOST_BETWEEN => Ok(between),
        more => {
            Err(Part::Chain.is(format!("has {more} certificates before a root; {MOST_BETWEEN} are the most")))
        }
    }
}

fn is_self_signed(der: &Der) -> Result<bool, Unusable> {
    let certificate = parse(Part::Chain, der)?;
    Ok(certificate.subject() == certificate.issuer())
}

/// Which root vouches for what the issuer signs, found as peers find it.
fn vouching(
    issuer: &Issuer<'_, KeyPair>,
    between: &[Der],
    roots: &[(Der, TrustAnchor<'static>)],
) -> Result<usize, Unusable> {
    let failed = |error: String| Part::Certificate.is(format!("signs nothing that holds: {error}"));
    let mut parameters = leaf(&[ExtendedKeyUsagePurpose::ServerAuth]);
    valid(&mut parameters, WORKLOAD_EARLIER, WORKLOAD_LIFE);
    let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
    let trial = parameters.signed_by(&key, issuer).map_err(|error| failed(error.to_string()))?;
    let trial = ParsedCertificate::try_from(trial.der()).map_err(|error| failed(error.to_string()))?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let mut last = None;
    for (index, (_, anchor)) in roots.iter().enumerate() {
        let only = RootCertStore { roots: vec![anchor.clone()] };
        let now = UnixTime::now();
        match verify_server_cert_signed_by_trust_anchor(&trial, &only, between, now, algorithms) {
            Ok(()) => return Ok(index),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map(|error| error.to_string()).unwrap_or_default();
    Err(Part::Chain.is(format!("from the certificate on leads to none of the roots: {why}")))
}

/// The key of a request whose own signature is good, where it is one that we take.
fn key_of(csr: &str) -> Result<SubjectPublicKeyInfo, String> {
    if csr.len() > MAX_REQUEST {
        return Err(format!("has {} bytes, and {MAX_REQUEST} is the most", csr.len()));
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).map_err(|_| "is no PEM")?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| "is no PKCS#10")?;
    request.verify_signature().map_err(|_| "is not signed by its own key")?;
    let key = &request.certification_request_info.subject_pki;
    let strong = match key.parsed().map_err(|_| "has a key that can't be read")? {
        PublicKey::RSA(rsa) => (2048..=4096).contains(&rsa.key_size()),
        PublicKey::EC(point) => matches!(point.key_size(), 256 | 384),
        // Ed25519.
        PublicKey::Unknown(bytes) => bytes.len() == 32,
        _ => false,
    };
    if !strong {
        return Err("has a key of another kind than RSA (2,048 to 4,096 bits), P-256, P-384, Ed25519".into());
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| format!("has a key that can't be used: {error}"))
}

/// 127 random bits: nobody can tell what the next certificate is called.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from(bytes.to_vec())
}

fn valid(parameters: &mut CertificateParams, earlier: Duration, life: Duration) {
    let now = SystemTime::now();
    parameters.not_before = (now - earlier).into();
    parameters.not_after = (now + life).into();
}

/// Certificate and key of a new root, both PEM.
pub fn new_root(organization: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = root();
    parameters.distinguished_name.push(DnType::OrganizationName, organization);
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The root `old` once more, for another life: same name and same key, so that whoever believes one believes the other.
pub fn renewed_root(old: &str, key: &str) -> Result<String, Unusable> {
    let failed = |error: rcgen::Error| Part::Certificate.is(format!("can't be renewed: {error}"));
    let read = read(Part::Certificate, old)?;
    let old = read.first().ok_or_else(|| Part::Certificate.is("is no PEM"))?;
    let key = read_key(key)?;
    let mut parameters = root();
    parameters.distinguished_name = name_of(&parse(Part::Certificate, old)?)?;
    parameters.self_signed(&key).map(|certificate| certificate.pem()).map_err(failed)
}

/// The subject of a certificate, written as it is there: peers compare it byte by byte.
fn name_of(certificate: &X509Certificate<'_>) -> Result<DistinguishedName, Unusable> {
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter_attributes() {
        let odd = || Part::Certificate.is("has a name that can't be written again");
        let kind = attribute.attr_type().iter().ok_or_else(odd)?.collect::<Vec<u64>>();
        let text = attribute.as_str().map_err(|_| odd())?;
        let value = match attribute.attr_value().tag() {
            x509_parser::der_parser::ber::Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| odd())?)
            }
            x509_parser::der_parser::ber::Tag::Utf8String => DnValue::Utf8String(text.into()),
            _ => return Err(odd()),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}

fn root() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name = DistinguishedName::new();
    parameters.serial_number = Some(serial());
    valid(&mut parameters, EARLIER, ROOT_LIFE);
    parameters
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use rcgen::CertificateSigningRequest;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use x509_parser::prelude::{GeneralName, X509Certificate};

    use super::*;

    pub(crate) fn authority() -> Authority {
        let (root, key) = new_root("cluster.local").unwrap();
        Authority::new(root, &key).unwrap()
    }

    /// A root, one authority below it, and a second one below that, which signs; with what doesn't do for either.
    pub(crate) struct Family {
        pub root: String,
        pub between: String,
        pub certificate: String,
        pub key: String,
        pub ended: String,
        pub leaf: String,
    }

    impl Family {
        /// The authority of the family where these are the roots.
        pub(crate) fn authority(&self, roots: &str) -> Authority {
            let Self { between, certificate, key, .. } = self;
            let (certificate, key, chain) = (certificate.clone(), key.clone(), between.clone());
            Authority::of(&Material { certificate, key, chain, roots: roots.into() }).unwrap()
        }
    }

    pub(crate) fn family() -> Family {
        let [first, second, third] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let mut ended = super::root();
        ended.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
        let ended = ended.self_signed(&third).unwrap().pem();
        let leaf = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&third).unwrap().pem();
        let key = third.serialize_pem();
        let named = |name: &str| {
            let mut parameters = super::root();
            parameters.distinguished_name.push(DnType::CommonName, name);
            parameters
        };
        let root = named("root");
        let root_pem = root.self_signed(&first).unwrap().pem();
        let root = Issuer::new(root, first);
        let between = named("between");
        let between_pem = between.signed_by(&second, &root).unwrap().pem();
        let certificate = named("signs").signed_by(&third, &Issuer::new(between, second)).unwrap().pem();
        Family { root: root_pem, between: between_pem, certificate, key, ended, leaf }
    }

    fn roots(authority: &Authority) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.roots().as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    fn request(change: impl FnOnce(&mut CertificateParams)) -> CertificateSigningRequest {
        let mut parameters = CertificateParams::default();
        change(&mut parameters);
        parameters.serialize_request(&KeyPair::generate().unwrap()).unwrap()
    }

    const WEB: &str = "spiffe://cluster.local/ns/a/sa/web";

    #[test]
    fn a_server_is_known_by_the_root_and_its_names_alone() {
        let authority = authority();
        let names = ["osier-pilot.osier-system.svc".to_owned(), "127.0.0.1".to_owned()];
        let (chain, _) = authority.server(&names).unwrap();
        let certificate = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(&authority), provider()).build().unwrap();
        let verify = |name: &str, time: UnixTime| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&certificate, &[], &name, &[], time).is_ok()
        };
        let now = UnixTime::now();
        assert!(verify("osier-pilot.osier-system.svc", now) && verify("127.0.0.1", now));
        assert!(!verify("another.osier-system.svc", now));
        let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + 2 * SERVER_LIFE);
        assert!(!verify("osier-pilot.osier-system.svc", later));
    }

    #[test]
    fn a_workload_is_whom_its_caller_proved_to_be_whatever_it_asks_for() {
        let authority = authority();
        let csr = request(|parameters| {
            let other = "spiffe://cluster.local/ns/a/sa/admin";
            parameters.subject_alt_names =
                vec![SanType::URI(other.try_into().unwrap()), SanType::DnsName("x".try_into().unwrap())];
            parameters.distinguished_name.push(DnType::CommonName, "admin");
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        let chain = authority.workload(&csr.pem().unwrap(), WEB, None).unwrap();
        assert_eq!((chain.len(), chain[1].as_str()), (2, authority.roots()));
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        let (_, read) = X509Certificate::from_der(&leaf).unwrap();
        let names = read.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical, "there is no subject");
        assert_eq!(names.value.general_names, [GeneralName::URI(WEB)]);
        assert_eq!(read.subject().to_string(), "");
        assert!(!read.is_ca());
        let usage = read.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&authority), provider());
        let verifier = verifier.build().unwrap();
        let at = |seconds: i64| {
            let now = UnixTime::now().as_secs() as i64;
            let time = UnixTime::since_unix_epoch(Duration::from_secs((now + seconds) as u64));
            verifier.verify_client_cert(&leaf, &[], time).is_ok()
        };
        assert!(at(0) && at(-110) && at(24 * 3600 - 10));
        assert!(!at(-130) && !at(24 * 3600 + 10));
    }

    #[test]
    fn a_life_is_as_asked_up_to_a_bound_and_to_the_end_of_the_root() {
        let authority = authority();
        let csr = request(|_| ()).pem().unwrap();
        let life = |asked: u64| {
            let chain = authority.workload(&csr, WEB, Some(Duration::from_secs(asked)))?;
            let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
            let (_, read) = X509Certificate::from_der(&leaf).unwrap();
            Ok::<_, SignError>(read.validity().not_after.timestamp() - ASN1Time::now().timestamp())
        };
        assert!((3590..=3600).contains(&life(3600).unwrap()));
        assert!(matches!(life(10 * 365 * 24 * 3600), Err(SignError::TooLong { .. })));
        let key = KeyPair::generate().unwrap();
        let mut ending = CertificateParams::default();
        ending.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ending.not_after = (SystemTime::now() + Duration::from_secs(60)).into();
        let root = ending.self_signed(&key).unwrap().pem();
        let authority = Authority::new(root, &key.serialize_pem()).unwrap();
        let chain = authority.workload(&csr, WEB, None).unwrap();
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        let (_, read) = X509Certificate::from_der(&leaf).unwrap();
        assert!(read.validity().not_after.timestamp() <= ASN1Time::now().timestamp() + 60);
    }

    #[test]
    fn a_request_that_is_none_is_refused_with_the_reason() {
        let authority = authority();
        let refused = |csr: &str| authority.workload(csr, WEB, None).unwrap_err().to_string();
        let good = request(|_| ());
        let mut forged = good.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let half = as_pem(&forged[..forged.len() / 2]);
        let forged = as_pem(&forged);
        for (csr, says) in [
            (String::new(), "is no PEM"),
            ("x".repeat(20_000), "is the most"),
            (half, "is no PKCS#10"),
            (forged, "is not signed by its own key"),
        ] {
            assert!(refused(&csr).contains(says), "{}", refused(&csr));
        }
    }

    fn as_pem(der: &[u8]) -> String {
        use base64::Engine as _;
        let body = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    }

    #[test]
    fn a_leaf_comes_with_those_between_it_and_the_roots() {
        let (ours, other) = (family(), family());
        let authority = ours.authority(&format!("{}{}", other.root, ours.root));
        let chain = authority.workload(&request(|_| ()).pem().unwrap(), WEB, None).unwrap();
        let der = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        assert_eq!(
            chain[1..3].iter().map(|text| der(text)).collect::<Vec<_>>(),
            [der(&ours.certificate), der(&ours.between)]
        );
        assert_eq!(chain.len(), 4);
        let roots: Vec<_> = CertificateDer::pem_slice_iter(chain[3].as_bytes()).map(Result::unwrap).collect();
        assert_eq!(roots, [der(&ours.root), der(&other.root)], "the one that vouches comes first");
        let verifies = |root: &str| {
            let mut store = RootCertStore::empty();
            store.add(der(root)).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider()).build();
            let between = [der(&chain[1]), der(&chain[2])];
            verifier.unwrap().verify_client_cert(&der(&chain[0]), &between, UnixTime::now()).is_ok()
        };
        assert!(verifies(&ours.root) && !verifies(&other.root));
        let (shown, _) = authority.server(&["a".into()]).unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(shown.as_bytes()).count(), 3);
    }

    #[test]
    fn a_renewed_root_is_believed_by_whoever_believes_the_old_one() {
        let (old, key) = new_root("cluster.local").unwrap();
        let new = renewed_root(&old, &key).unwrap();
        assert_ne!(new, old);
        let (old, new) = (Authority::new(old, &key).unwrap(), Authority::new(new, &key).unwrap());
        assert!(new.is_believed_by_those_of(&old) && old.is_believed_by_those_of(&new));
        assert!(!new.is_same_as(&old));
        let stranger = authority();
        assert!(!stranger.is_believed_by_those_of(&old));
    }

    #[test]
    fn keys_are_taken_as_tools_write_them() {
        let openssl = |arguments: &[&str]| {
            let made = std::process::Command::new("openssl").args(arguments).output().unwrap();
            assert!(made.status.success());
            String::from_utf8(made.stdout).unwrap()
        };
        for arguments in [
            &["genrsa", "-traditional", "2048"][..],
            &["genrsa", "2048"],
            &["ecparam", "-name", "prime256v1", "-genkey"],
            &["ecparam", "-name", "secp384r1", "-genkey", "-noout"],
            &["genpkey", "-algorithm", "ed25519"],
        ] {
            let key = openssl(arguments);
            let root = super::root().self_signed(&read_key(&key).unwrap()).unwrap().pem();
            let authority = Authority::new(root, &key);
            assert!(authority.is_ok(), "{arguments:?}: {authority:?}");
        }
    }

    #[test]
    fn a_chain_is_no_longer_than_peers_follow() {
        let keys: Vec<KeyPair> = (0..8).map(|_| KeyPair::generate().unwrap()).collect();
        let named = |index: usize| {
            let mut parameters = super::root();
            parameters.distinguished_name.push(DnType::CommonName, format!("{index}"));
            parameters
        };
        let root = named(0).self_signed(&keys[0]).unwrap().pem();
        let mut chain = Vec::new();
        for index in 1..8 {
            let (above, own) = (named(index - 1), named(index));
            let issuer = Issuer::from_params(&above, &keys[index - 1]);
            chain.insert(0, own.signed_by(&keys[index], &issuer).unwrap().pem());
        }
        let of = |length: usize| {
            let shown = &chain[7 - length..];
            Authority::of(&Material {
                certificate: shown[0].clone(),
                key: keys[length].serialize_pem(),
                chain: shown[1..].concat(),
                roots: root.clone(),
            })
        };
        of(MOST_BETWEEN).unwrap();
        assert!(of(MOST_BETWEEN + 1).unwrap_err().to_string().contains("are the most"));
    }

    #[test]
    fn a_root_that_is_none_is_refused_with_the_reason() {
        let (root, key) = new_root("x").unwrap();
        assert!(Authority::new(root.clone(), "no key").unwrap_err().to_string().contains("is no PEM"));
        assert!(Authority::new("none".into(), &key).unwrap_err().to_string().contains("is no PEM"));
        let key = KeyPair::generate().unwrap();
        let mut ended = CertificateParams::default();
        ended.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ended.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
        let ended = ended.self_signed(&key).unwrap().pem();
        let refused = |root: String| Authority::new(root, &key.serialize_pem()).unwrap_err().to_string();
        assert!(refused(ended).contains("ended at"));
        let leaf = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().pem();
        assert!(refused(leaf).contains("is no certificate of an authority"));
    }
}
