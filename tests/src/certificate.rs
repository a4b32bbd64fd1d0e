//! Certificates of somebody else's, as files: what servers and clients outside of a mesh have.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

/// A root, and the folder in which it keeps its files.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

/// A certificate with its key.
pub struct Certified {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Root {
    /// A root that nobody has signed.
    pub fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let root = Self {
            issuer: Issuer::new(parameters, key),
            folder: folder.to_path_buf(),
            name: name.to_owned(),
        };
        std::fs::write(root.file(), certificate.pem()).expect("the test's folder can be written");
        root
    }

    /// Where it lies.
    pub fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// Signs a certificate for `host`, for an hour.
    pub fn sign(&self, host: &str) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, host);
        let name = host.try_into().expect("a host name");
        parameters.subject_alt_names = vec![SanType::DnsName(name)];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        parameters.not_before = (now - hour).into();
        parameters.not_after = (now + hour).into();
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |ending: &str| self.folder.join(format!("{}-{host}.{ending}", self.name));
        let certified = Certified { certificate: file("crt"), key: file("key") };
        std::fs::write(&certified.certificate, certificate.pem()).expect("the test's folder can be written");
        std::fs::write(&certified.key, key.serialize_pem()).expect("the test's folder can be written");
        certified
    }
}
