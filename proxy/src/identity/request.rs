//! A new key with a request to certify it, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::peer::Peer;
use super::pem;
use crate::config::tls::{Trust, provider};

/// A key that nobody has certified yet.
pub struct Request {
    key: KeyPair,
    csr: String,
}

/// A certificate as text, for others.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// Certificate, with those between it and a root.
    pub chain: String,
    /// Its key.
    pub key: String,
    /// The roots of the mesh.
    pub roots: String,
}

impl std::fmt::Debug for Pem {
    /// Nothing of the content: this ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem")
    }
}

/// What the workload is, for a while.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Certificate, with those between it and a root, and its key.
    pub certificate: Arc<CertifiedKey>,
    /// The roots of the mesh.
    pub trust: Arc<Trust>,
    /// Both as text, where somebody hands them on.
    pub pem: Option<Arc<Pem>>,
    /// Whom it names.
    pub name: Arc<str>,
    /// When it begins, in seconds since 1970.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
}

/// Why an answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Useless {
    /// Leaf and root are the least.
    #[error("the answer has {0} certificates, and a leaf and a root are the least")]
    TooFew(usize),
    /// A part is no PEM, or no certificate.
    #[error("the answer can't be read: {0}")]
    Unreadable(String),
    /// The certificate is for another key.
    #[error("the certificate is not for our key: {0}")]
    OtherKey(rustls::Error),
}

impl Issued {
    /// The certificate, and those between it and a root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certificate.cert
    }

    /// The place of the root that vouches for it, whatever our clock says.
    pub fn vouching(&self, roots: &Trust) -> Option<usize> {
        // In the middle of its life those between it and the root hold as well: they may be younger than its beginning.
        let middle = u64::try_from(self.not_before.midpoint(self.not_after)).unwrap_or_default();
        roots.vouching(self.chain(), UnixTime::since_unix_epoch(Duration::from_secs(middle)))
    }
}

impl Request {
    /// Makes a key (ECDSA P-256) and a request for it. It names nobody: the authority knows who asks.
    pub fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        let csr = parameters.serialize_request(&key)?.pem()?;
        Ok(Self { key, csr })
    }

    /// PKCS#10, as PEM.
    pub fn csr(&self) -> &str {
        &self.csr
    }

    /// Puts the answer together with the key. `chain`: the leaf, those between, the roots in one string.
    /// `as_text`: the text, with the key, is wanted as well.
    pub fn complete(self, chain: &[String], as_text: bool) -> Result<Issued, Useless> {
        let ([certificates @ .., roots], [_, _, ..]) = (chain, chain) else {
            return Err(Useless::TooFew(chain.len()));
        };
        let read = |text: &String| {
            let found = pem::certificates(text.as_bytes());
            found.map_err(|error| Useless::Unreadable(format!("a part {error}")))
        };
        let parts: Vec<_> = certificates.iter().map(read).collect::<Result<_, _>>()?;
        let shown = parts.concat();
        let leaf = shown.first().ok_or_else(|| Useless::Unreadable("there is no leaf".into()))?;
        let unreadable = |error: String| Useless::Unreadable(error);
        let lines = |part: &String| format!("{}\n", part.trim_end());
        let text = || Pem {
            chain: certificates.iter().map(lines).collect(),
            key: self.key.serialize_pem(),
            roots: lines(roots),
        };
        let pem = as_text.then(|| Arc::new(text()));
        let peer = Peer::of(leaf).map_err(|error| unreadable(error.to_string()))?;
        let key =
            PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|error| unreadable(error.into()))?;
        let certificate = CertifiedKey::from_der(shown, key, &provider()).map_err(Useless::OtherKey)?;
        let trust = Trust::new(read(roots)?).map_err(unreadable)?;
        Ok(Issued {
            certificate: Arc::new(certificate),
            trust: Arc::new(trust),
            pem,
            name: peer.to_string().into(),
            not_before: peer.not_before,
            not_after: peer.not_after,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateSigningRequestParams, Issuer, SanType};

    use super::*;

    fn root() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        (certificate.pem(), Issuer::new(parameters, key))
    }

    fn sign(request: &Request, issuer: &Issuer<'_, KeyPair>) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(request.csr()).unwrap();
        let name = "spiffe://cluster.local/ns/a/sa/b";
        csr.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        csr.signed_by(issuer).unwrap().pem()
    }

    #[test]
    fn an_answer_becomes_a_certificate_with_its_key() {
        let (root, issuer) = root();
        let request = Request::new().unwrap();
        let leaf = sign(&request, &issuer);
        let issued = request.complete(&[leaf, root], true).unwrap();
        assert_eq!(&*issued.name, "spiffe://cluster.local/ns/a/sa/b");
        assert_eq!(issued.certificate.cert.len(), 1, "the root is not shown");
        assert!(issued.pem.unwrap().key.contains("PRIVATE KEY"));
    }

    #[test]
    fn a_key_is_text_only_for_who_hands_it_on() {
        let (root, issuer) = root();
        let request = Request::new().unwrap();
        let leaf = sign(&request, &issuer);
        assert_eq!(request.complete(&[leaf, root], false).unwrap().pem, None);
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_named() {
        let (root, issuer) = root();
        let complete = |chain: &[&str]| {
            let request = Request::new().unwrap();
            let chain: Vec<String> = chain.iter().map(ToString::to_string).collect();
            request.complete(&chain, false).unwrap_err().to_string()
        };
        let others = sign(&Request::new().unwrap(), &issuer);
        assert!(complete(&[&others]).contains("has 1 certificates"));
        assert!(complete(&[&others, &root]).contains("is not for our key"));
        assert!(complete(&["", &root]).contains("a part has no certificate"));
        let request = Request::new().unwrap();
        let leaf = sign(&request, &issuer);
        assert!(request.complete(&[leaf, "no root".into()], false).is_err());
    }
}
