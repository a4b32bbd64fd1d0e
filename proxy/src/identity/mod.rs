//! Who is who: the workload's own certificate, from its request to its renewal, and what a peer's certificate says.
//!
//! The key is made here and leaves this process never: the certificate authority gets a request that it has signed, and says whose
//! it is by the token that comes along. Each certificate has a key of its own.

pub mod authority;
pub mod files;
pub mod known;
pub mod peer;
pub mod pem;
pub mod renewal;
pub mod request;
pub mod resumption;
#[cfg(test)]
pub(crate) mod test_support;
pub mod vouch;
