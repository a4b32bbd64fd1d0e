//! From a cluster handle to a sent request: limits, balancing, connections.

pub mod balance;
pub mod connect;
pub mod dns;
pub mod live;
mod mailbox;
mod waiting;
