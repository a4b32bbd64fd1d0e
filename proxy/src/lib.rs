//! The data plane of Osier: a sidecar proxy that is configured over xDS v3.
//!
//! Reading order: `app` (start to drain), `listener` (a connection arrives), `http::exchange` (one request from start
//! to finish), `upstream` (from a cluster to a sent request), `compile` (xDS to the representation in `config`).

#![deny(clippy::print_stdout, reason = "`osier_core::say!` ends politely where nobody reads")]

pub mod admin;
pub mod agent;
pub mod app;
pub mod authz;
pub mod bootstrap;
pub mod capture;
pub mod compile;
pub mod config;
pub mod descriptors;
pub mod dns;
pub mod error;
pub mod ext_authz;
pub mod http;
pub mod identity;
pub mod io;
pub mod jwt;
pub mod listener;
pub mod node;
pub mod on_demand;
pub mod program;
pub mod settings;
pub mod status;
pub mod tcp;
pub mod telemetry;
pub mod upstream;
pub mod worker;
pub mod xds;
