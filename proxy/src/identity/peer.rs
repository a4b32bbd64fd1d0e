//! The other end of a connection, as its certificate names it.
//!
//! Read once, after the handshake has verified the chain. Names are compared byte by byte: what has control bytes or is not ASCII
//! is no name, and a certificate with such a name is refused whole.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// Whom a verified certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// URI names, in the order of the certificate: SPIFFE IDs in a mesh.
    pub uris: Box<[Arc<str>]>,
    /// DNS names.
    pub dns: Box<[Arc<str>]>,
    /// Mail addresses.
    pub emails: Box<[Arc<str>]>,
    /// IP addresses, as text.
    pub ips: Box<[Arc<str>]>,
    /// The subject as RFC 2253 writes it; empty where it has none.
    pub subject: Arc<str>,
    /// The certificate, and those that were shown behind it.
    pub chain: Box<[CertificateDer<'static>]>,
    /// SHA-256 of the certificate.
    pub hash: [u8; 32],
    /// When the certificate begins, in seconds since 1970.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
}

/// Why a certificate says nothing that could be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no X.509.
    #[error("the peer's certificate can't be read")]
    Certificate,
    /// A name in it has bytes that no name has.
    #[error("the peer's certificate has a name with bytes that no name has")]
    Name,
}

impl Peer {
    /// Reads a leaf certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        Self::with_hash(certificate, &[], hash(certificate))
    }

    /// The same where its hash is known, with what was shown behind it.
    pub(super) fn with_hash(
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        hash: [u8; 32],
    ) -> Result<Self, Unreadable> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| Unreadable::Certificate)?;
        let names = parsed.subject_alternative_name().map_err(|_| Unreadable::Certificate)?;
        let (mut uris, mut dns, mut emails, mut ips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push(plain(uri)?),
                GeneralName::DNSName(name) => dns.push(plain(name)?),
                GeneralName::RFC822Name(name) => emails.push(plain(name)?),
                GeneralName::IPAddress(bytes) => ips.push(address(bytes)?),
                _ => {}
            }
        }
        let chain = std::iter::once(certificate).chain(between);
        Ok(Self {
            uris: uris.into(),
            dns: dns.into(),
            emails: emails.into(),
            ips: ips.into(),
            subject: parsed.subject().to_string().into(),
            chain: chain.map(|certificate| certificate.clone().into_owned()).collect(),
            hash,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }

    /// All its names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = [&self.uris, &self.dns, &self.emails, &self.ips];
        all.into_iter().flat_map(|names| names.iter().map(|name| &**name))
    }

    /// SHA-256 of the certificate, in lower-case hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.hash)
    }

    /// What policies take it for: its URI names, else its DNS names, else its subject.
    pub fn principals(&self) -> &[Arc<str>] {
        match (&*self.uris, &*self.dns) {
            ([], []) => std::slice::from_ref(&self.subject),
            ([], dns) => dns,
            (uris, _) => uris,
        }
    }
}

/// A hash in lower-case hexadecimal digits.
pub fn fingerprint(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a certificate.
pub fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    digest(&SHA256, certificate).as_ref().try_into().unwrap_or_default()
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.principals().first().map_or("", |name| name))
    }
}

fn address(bytes: &[u8]) -> Result<Arc<str>, Unreadable> {
    let ip = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok(),
        16 => <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok(),
        _ => None,
    };
    ip.map(|ip| ip.to_string().into()).ok_or(Unreadable::Name)
}

fn plain(name: &str) -> Result<Arc<str>, Unreadable> {
    match name.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(name.into()),
        false => Err(Unreadable::Name),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>, common_name: Option<&str>) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = names;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            parameters.distinguished_name.push(DnType::CommonName, name);
        }
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_peer_is_called_by_its_uris_else_its_dns_names_else_its_subject() {
        let dns = || SanType::DnsName("a.example".try_into().unwrap());
        let spiffe = "spiffe://cluster.local/ns/a/sa/b";
        for (names, common_name, principals) in [
            (
                vec![dns(), uri(spiffe), uri("spiffe://other/ns/a/sa/b")],
                Some("x"),
                vec![spiffe, "spiffe://other/ns/a/sa/b"],
            ),
            (vec![dns()], Some("x"), vec!["a.example"]),
            (vec![], Some("x"), vec!["CN=x"]),
        ] {
            let peer = Peer::of(&certificate(names, common_name)).unwrap();
            let said: Vec<&str> = peer.principals().iter().map(|name| &**name).collect();
            assert_eq!(said, principals);
        }
    }

    #[test]
    fn odd_bytes_in_a_name_and_garbage_are_refused() {
        assert_eq!(Peer::of(&CertificateDer::from(vec![1, 2, 3])), Err(Unreadable::Certificate));
        for odd in ["spiffe://a/ns/b\0/sa/c", "spiffe://a/ns/b c/sa/d", "spiffe://a/\x7f"] {
            assert_eq!(Peer::of(&certificate(vec![uri(odd)], None)), Err(Unreadable::Name), "{odd:?}");
        }
    }
}
