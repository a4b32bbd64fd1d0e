//! The control plane of Osier: reads the mesh from Kubernetes and Istio YAML and serves it to proxies over xDS v3.
//!
//! Reading order: `app` (start to drain), `source` (YAML arrives), `snapshot` (the whole mesh, immutable),
//! `push` (who must hear of a change), `xds` (one stream), `gen` (one resource).

pub mod admin;
pub mod app;
pub mod ca;
pub mod deadline;
pub mod debug;
pub mod r#gen;
pub mod inject;
pub mod jwks;
pub mod kubernetes;
pub mod metrics;
pub mod model;
pub mod preface;
pub mod program;
pub mod push;
pub mod registry;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod webhook;
pub mod xds;
