//! Certificates that gateways show to their clients.

use std::fmt;

/// A certificate chain and its key, both PEM. They fit each other.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSecret {
    /// The server's certificate first.
    pub chain: Box<[u8]>,
    /// Its key.
    pub key: Box<[u8]>,
}

impl fmt::Debug for TlsSecret {
    /// Nothing of the content: this ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSecret")
    }
}
