//! Certificates that workloads show, and roots by which they believe others.

use std::fmt;

/// What a Secret has of certificates: something of both at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// What is shown.
    pub own: Option<TlsSecret>,
    /// Roots, PEM.
    pub roots: Option<Box<[u8]>>,
}

/// The name that means the roots of a Secret: those in a Secret of that name, else those beside its certificate.
pub fn roots_of(credential: &str) -> String {
    match has_roots_of(credential) {
        Some(_) => credential.to_owned(),
        None => format!("{credential}{ROOTS}"),
    }
}

/// The Secret whose roots are meant by this name.
pub fn has_roots_of(name: &str) -> Option<&str> {
    name.strip_suffix(ROOTS)
}

/// What names that mean roots end with.
const ROOTS: &str = "-cacert";

/// A certificate chain and its key, both PEM. They fit each other.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSecret {
    /// The certificate of whoever shows it first.
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
