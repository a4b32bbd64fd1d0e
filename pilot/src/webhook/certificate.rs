//! The certificate that the server shows: one value that is swapped at run time, so that rotation leaves no gap.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The certificate in force. Before the first there is none, and handshakes fail.
#[derive(Debug, Default)]
pub struct Current(ArcSwapOption<CertifiedKey>);

/// Why a certificate can't be put in force.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No PEM.
    #[error("the certificate chain is no PEM: {0}")]
    Chain(#[source] rustls_pki_types::pem::Error),
    /// No certificate at all.
    #[error("the certificate chain is empty")]
    Empty,
    /// No key.
    #[error("the private key is no PEM: {0}")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// They don't fit.
    #[error("the private key does not fit the certificate: {0}")]
    Mismatch(#[source] rustls::Error),
}

impl Current {
    /// Puts a chain (the server's certificate first) and its key, both PEM, in force for new connections.
    pub fn set(&self, chain: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        self.0.store(Some(Arc::new(certified(chain, key)?)));
        Ok(())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.load().is_some()
    }
}

/// A chain (the server's certificate first) and its key, both PEM, where they fit each other.
pub fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let chain: Vec<CertificateDer> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(CertificateError::Chain)?;
    if chain.is_empty() {
        return Err(CertificateError::Empty);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::Key)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(CertificateError::Mismatch)
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// A server that shows the certificate in force. API servers speak HTTP/2 where they can.
pub fn server_config(current: Arc<Current>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}
