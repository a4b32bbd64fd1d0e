//! Stock clients on osier-pilot: Envoy and Python's gRPC do what the YAML says, and refuse nothing.

mod envoy;
mod grpc;
mod mesh;
mod refused;
