//! Stock clients on osier-pilot: Envoy and Python's gRPC serve the split that the YAML says, and refuse nothing.

mod envoy;
mod grpc;
mod mesh;
