//! Real network namespaces: original destinations, pods as Kubernetes makes them, and what `osier-proxy init` captures.

mod capture;
mod kubernetes;
mod pod;
mod rules;
mod sidecar;
