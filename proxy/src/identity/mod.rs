//! Who is who: the workload's own certificate, from its request to its renewal, and what a peer's certificate says.
//!
//! The key is made here, and of a sidecar and a gateway it never leaves the process: the certificate authority gets a request that it has
//! signed, and says whose it is by the token that comes along. Each certificate has a key of its own. `osier-proxy agent` is there to hand
//! the key on (see [`crate::agent`]); only for it is it kept as text.

pub mod authority;
mod changes;
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
