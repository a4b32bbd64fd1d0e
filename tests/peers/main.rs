//! Clients on osier-pilot (Envoy, Python's gRPC, and osier-proxy on an Envoy bootstrap do what the YAML says, and refuse nothing), and
//! osier-proxy on an xDS server that misbehaves.

mod agent;
mod authorization;
mod client;
mod envoy;
mod external;
mod grpc;
mod mesh;
mod misbehaving;
mod osier;
mod osier_run;
mod refused;
