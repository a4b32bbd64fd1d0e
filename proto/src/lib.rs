//! The wire between control plane and proxy: xDS v3.
//!
//! The messages are compiled from our own .proto files, which declare what Osier supports and nothing else, under the names and
//! numbers of Envoy's API. A field that is not declared is refused by name, never ignored.
//!
//! - `envoy`, `google`, `osier` hold the messages, in the modules of their packages ([`types`] has short names for them);
//! - [`any`]: `google.protobuf.Any` over shared bytes;
//! - [`json`]: any registered message to and from JSON, for `/config_dump` and bootstrap files;
//! - [`unknown`]: finds what a resource carries beyond the declared schema;
//! - [`schema`]: what two ends of a stream tell each other about themselves;
//! - [`xds`]: the protocol as two state machines without I/O;
//! - [`transport`]: those machines on the network.

pub mod any;
pub mod json;
pub mod schema;
pub mod transport;
pub mod types;
pub mod unknown;
pub mod xds;

pub use any::{Any, AnyError};

// The types of the protocol, as siblings of the modules above: generated code refers to neighbouring packages by `super::`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
#[doc(inline)]
pub use messages::{envoy, google, istio, osier};
