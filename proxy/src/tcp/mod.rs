//! Opaque connections: choose a cluster, pick an endpoint, connect, copy both ways.

pub mod copy;
pub mod exchange;
pub mod splice;
mod tally;
