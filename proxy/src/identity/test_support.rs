//! Roots and whom they vouch for, for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use super::known::KnownPeers;
use super::peer::Peer;
use super::vouch::{Before, Vouch};
use crate::config::tls::{Role, Secret, SecretHandle, Trust};

/// A root that signs.
pub(crate) struct Root {
    pub pem: String,
    pub der: CertificateDer<'static>,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Root {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { pem, der, issuer: Issuer::new(parameters, key) }
    }

    /// The holder of a certificate that holds from the one time to the other.
    pub fn peer(&self, from: SystemTime, to: SystemTime) -> Arc<Peer> {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI("spiffe://a/ns/b/sa/c".try_into().unwrap())];
        (parameters.not_before, parameters.not_after) = (from.into(), to.into());
        let leaf = parameters.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap();
        KnownPeers::default().of(leaf.der(), &[]).unwrap()
    }

    /// A client with a certificate of this root, that is believed by `trust` and was shown `own`.
    pub fn vouches_by(&self, trust: &Arc<SecretHandle>, own: Option<&Arc<SecretHandle>>) -> Arc<Vouch> {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        Before::new(Role::Client, trust, own).believed(self.peer(now - hour, now + hour), None)
    }
}

/// Trust in these.
pub(crate) fn roots(roots: &[&Root]) -> Arc<Trust> {
    Arc::new(Trust::new(roots.iter().map(|root| root.der.clone())).unwrap())
}

/// A handle that has it.
pub(crate) fn believing(of: &[&Root]) -> Arc<SecretHandle> {
    SecretHandle::new("ROOTCA", Secret::Trust(roots(of)))
}
