//! Signs certificates: of workloads, as their callers have proved to be, and of the control plane's own servers.
//!
//! Where root and key are kept is known elsewhere. Of a request only the key counts; its names and extensions are read by nobody.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
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

/// Why a root or its key can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The certificate.
    #[error("the certificate {0}")]
    Certificate(String),
    /// The key.
    #[error("the key {0}")]
    Key(String),
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
    /// The root itself has ended.
    #[error("the root certificate has ended")]
    Ended,
    /// Signing fails.
    #[error("a certificate can't be made: {0}")]
    Issue(#[from] rcgen::Error),
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    /// When the root ends, in seconds since 1970.
    not_after: i64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// The authority of a root and its key, both PEM.
    pub fn new(root: String, key: &str) -> Result<Self, Unusable> {
        let key = KeyPair::from_pem(key).map_err(|error| Unusable::Key(format!("can't be read: {error}")))?;
        let not_after = check(&root).map_err(Unusable::Certificate)?;
        let issuer = Issuer::from_ca_cert_pem(&root, key)
            .map_err(|error| Unusable::Certificate(format!("can't be read: {error}")))?;
        Ok(Self { issuer, root, not_after })
    }

    /// The root certificate, as PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Certificate chain and key, both PEM, of a server of these names and addresses, valid for [`SERVER_LIFE`].
    pub fn server(&self, names: &[String]) -> Result<(String, String), SignError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(names.to_vec())?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        valid(&mut parameters, EARLIER, SERVER_LIFE);
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A certificate for the key of `csr` (PKCS#10, PEM) that names `spiffe`: the certificate, then the root, both PEM.
    /// `life`: what is asked for; `None` for the default.
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
        let left = self.not_after - ASN1Time::now().timestamp();
        let left = u64::try_from(left).ok().filter(|left| *left > 0).ok_or(SignError::Ended)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.serial_number = Some(serial());
        valid(&mut parameters, WORKLOAD_EARLIER, life.min(Duration::from_secs(left)));
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok(vec![certificate.pem(), self.root.clone()])
    }
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

/// A root that has ended, or that is none, must not be told to anybody as what to trust. When it ends, in seconds since 1970.
fn check(root: &str) -> Result<i64, String> {
    let der =
        CertificateDer::from_pem_slice(root.as_bytes()).map_err(|error| format!("is no PEM: {error}"))?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| format!("can't be read: {error}"))?;
    if !certificate.is_ca() {
        return Err("is no certificate of an authority".into());
    }
    let validity = certificate.validity();
    if validity.not_after < ASN1Time::now() {
        return Err(format!("ended at {}; remove it, and a new one is made", validity.not_after));
    }
    Ok(validity.not_after.timestamp())
}

fn valid(parameters: &mut CertificateParams, earlier: Duration, life: Duration) {
    let now = SystemTime::now();
    parameters.not_before = (now - earlier).into();
    parameters.not_after = (now + life).into();
}

/// Certificate and key of a new root, both PEM.
pub fn new_root(organization: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, organization);
    parameters.serial_number = Some(serial());
    valid(&mut parameters, EARLIER, ROOT_LIFE);
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
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

    fn roots(authority: &Authority) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.root().as_bytes()).unwrap()).unwrap();
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
        assert_eq!((chain.len(), chain[1].as_str()), (2, authority.root()));
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
    fn a_root_that_is_none_is_refused_with_the_reason() {
        let (root, key) = new_root("x").unwrap();
        assert!(Authority::new(root.clone(), "no key").unwrap_err().to_string().contains("can't be read"));
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
