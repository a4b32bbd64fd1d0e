//! Stock clients on osier-pilot (Envoy and Python's gRPC do what the YAML says, and refuse nothing), and osier-proxy on an xDS
//! server that misbehaves.

mod envoy;
mod grpc;
mod mesh;
mod misbehaving;
mod refused;
