//! From a cluster handle to a sent request: limits, balancing, connections.

pub mod live;
