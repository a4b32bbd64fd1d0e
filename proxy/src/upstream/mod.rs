//! From a cluster handle to a sent request.
//!
//! An attempt goes through: [`pool::Pool::choose`] (which endpoint), [`pool::Pool::open`] (limits, then a connection that is there
//! or a new one), and the [`stream::UpstreamStream`] that this returns (the request out, the response in). [`live`] holds what
//! outlasts configuration: counts, limits, states of endpoints. Raw TCP takes [`connect::open_tcp`] instead of a pool.

pub mod balance;
pub mod choose;
pub mod connect;
pub mod dns;
pub mod live;
mod mailbox;
pub mod pool;
mod waiting;
