//! Real network namespaces: original destinations, pods as Kubernetes makes them, and what `osier-proxy init` captures.

mod capture;
mod families;
mod kubernetes;
mod mesh;
mod pod;
mod rules;
mod sidecar;
