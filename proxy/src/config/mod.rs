//! The proxy's intermediate representation: what `compile` makes of xDS, and what the request path reads.
//!
//! Plain, validated, immutable data and look-ups. Invariants: no protobuf type appears here, nothing does I/O,
//! every name that the request path needs is already resolved to an `Arc`, and every regular expression is built.
//!
//! Three swap points, from rare to frequent: [`snapshot::Snapshot`] (listeners and routes),
//! [`cluster::ClusterHandle`] (what a cluster is), [`endpoint::EndpointSet`] (who is in it).

pub mod cluster;
pub mod endpoint;
pub mod listener;
pub mod route;
pub mod snapshot;
pub mod tls;

// One module for both halves: pilot refuses what the proxy could not compile.
pub use osier_core::re2 as regex;
