//! The certificate authority: a self-signed root in a Secret, made once by whichever replica comes first, and the certificates of
//! the control plane's own servers.
//!
//! Name, type and keys of the Secret are Istio's. Its content never leaves this process but for the root certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::time::ASN1Time;

/// Name of the Secret.
pub const SECRET: &str = "istio-ca-secret";
const TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";

/// How long a root made here lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a server's certificate lives.
pub const SERVER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates are valid from a little earlier, for whoever's clock is late.
const EARLIER: Duration = Duration::from_secs(600);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server doesn't give or take the Secret.
    #[error("Secret {namespace}/{SECRET}")]
    Api {
        /// Namespace of the Secret.
        namespace: String,
        /// What it said.
        #[source]
        source: kube::Error,
    },
    /// The Secret holds something else.
    #[error("Secret {namespace}/{SECRET}: {key} {reason}")]
    Content {
        /// Namespace of the Secret.
        namespace: String,
        /// Which part.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate can't be made.
    #[error("a certificate can't be made")]
    Issue(#[from] rcgen::Error),
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// The one in the Secret; made where there is none.
    pub async fn load(client: &Client, namespace: &str) -> Result<Self, AuthorityError> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let failed = |source| AuthorityError::Api { namespace: namespace.into(), source };
        if let Some(secret) = api.get_opt(SECRET).await.map_err(failed)? {
            return Self::read(namespace, &secret);
        }
        match api.create(&PostParams::default(), &new_secret(namespace)?).await {
            Ok(secret) => {
                tracing::info!(secret = SECRET, "made a root certificate");
                Self::read(namespace, &secret)
            }
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Self::read(namespace, &api.get(SECRET).await.map_err(failed)?)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn read(namespace: &str, secret: &Secret) -> Result<Self, AuthorityError> {
        let wrong =
            |key, reason: String| AuthorityError::Content { namespace: namespace.into(), key, reason };
        let text = |key: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let bytes = bytes.ok_or_else(|| wrong(key, "is not there".into()))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| wrong(key, "is no PEM".into()))
        };
        let (root, key) = (text(CERTIFICATE)?, text(KEY)?);
        let key = KeyPair::from_pem(&key).map_err(|error| wrong(KEY, format!("can't be read: {error}")))?;
        check(&root).map_err(|reason| wrong(CERTIFICATE, reason))?;
        let issuer = Issuer::from_ca_cert_pem(&root, key)
            .map_err(|error| wrong(CERTIFICATE, format!("can't be read: {error}")))?;
        Ok(Self { issuer, root })
    }

    /// The root certificate, as PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Certificate chain and key, both PEM, of a server of these names, valid for [`SERVER_LIFE`].
    pub fn server(&self, names: &[String]) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(names.to_vec())?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        valid(&mut parameters, SERVER_LIFE);
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// A root that has ended, or that is none, must not be told to anybody as what to trust.
fn check(root: &str) -> Result<(), String> {
    let der =
        CertificateDer::from_pem_slice(root.as_bytes()).map_err(|error| format!("is no PEM: {error}"))?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| format!("can't be read: {error}"))?;
    if !certificate.is_ca() {
        return Err("is no certificate of an authority".into());
    }
    let validity = certificate.validity();
    if validity.not_after < ASN1Time::now() {
        return Err(format!("ended at {}; remove the Secret, and a new one is made", validity.not_after));
    }
    Ok(())
}

fn valid(parameters: &mut CertificateParams, life: Duration) {
    let now = std::time::SystemTime::now();
    parameters.not_before = (now - EARLIER).into();
    parameters.not_after = (now + life).into();
}

fn new_secret(namespace: &str) -> Result<Secret, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, "cluster.local");
    valid(&mut parameters, ROOT_LIFE);
    let certificate = parameters.self_signed(&key)?;
    let data = [(CERTIFICATE, certificate.pem()), (KEY, key.serialize_pem())];
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(data),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn a_server_is_known_by_the_root_and_its_names_alone() {
        let authority = Authority::read("n", &new_secret("n").unwrap()).unwrap();
        let names = ["osier-pilot.osier-system.svc".to_owned()];
        let (chain, _) = authority.server(&names).unwrap();
        let certificate = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.root().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let verify = |name: &str, time: UnixTime| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&certificate, &[], &name, &[], time).is_ok()
        };
        let now = UnixTime::now();
        assert!(verify("osier-pilot.osier-system.svc", now));
        assert!(!verify("another.osier-system.svc", now));
        let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + 2 * SERVER_LIFE);
        assert!(!verify("osier-pilot.osier-system.svc", later));
    }

    #[test]
    fn what_is_wrong_with_the_secret_is_named() {
        let good = new_secret("n").unwrap();
        let with = |key: &str, value: Option<&str>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => data.insert(key.into(), ByteString(value.as_bytes().to_vec())),
                None => data.remove(key),
            };
            Authority::read("n", &secret).unwrap_err().to_string()
        };
        assert_eq!(with(KEY, None), "Secret n/istio-ca-secret: ca-key.pem is not there");
        assert!(with(KEY, Some("no key")).contains("ca-key.pem can't be read"));
        assert!(with(CERTIFICATE, Some("none")).contains("ca-cert.pem is no PEM"));
        let mut ended = CertificateParams::default();
        ended.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ended.not_after = (std::time::SystemTime::now() - Duration::from_secs(60)).into();
        let ended = ended.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        assert!(with(CERTIFICATE, Some(&ended)).contains("ended at"));
        let leaf = CertificateParams::new(vec!["a".into()]).unwrap();
        let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        assert!(with(CERTIFICATE, Some(&leaf)).contains("is no certificate of an authority"));
    }
}
