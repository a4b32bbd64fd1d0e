//! Certificates as PEM has them.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Why a text holds no certificates.
#[derive(Debug, thiserror::Error)]
pub enum NoCertificates {
    /// It is something else.
    #[error("is no PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// It has none.
    #[error("has no certificate")]
    Empty,
}

/// All certificates of a text, one at least.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, NoCertificates> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>()?;
    if found.is_empty() { Err(NoCertificates::Empty) } else { Ok(found) }
}
