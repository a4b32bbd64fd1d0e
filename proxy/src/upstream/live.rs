//! Live state of clusters and endpoints: shared atomics that outlast configuration updates.

/// Live state of a cluster.
#[derive(Debug, Default)]
pub struct LiveState {}

/// Live state of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {}
