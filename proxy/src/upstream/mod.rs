//! From a cluster handle to a sent request.
//!
//! An attempt goes through: [`pool::Pool::choose`] (which endpoint), [`stream::UpstreamStream::open`] (limits,
//! then a connection that is there or a new one), and the stream that this returns (the request out, the response in). [`live`] holds what
//! outlasts configuration: counts, limits, states of endpoints. Raw TCP takes [`connect::open_tcp`] instead of a pool.

pub mod balance;
pub mod choose;
pub mod connect;
pub mod dns;
pub mod h1;
pub mod h2;
pub mod live;
mod mailbox;
pub mod pool;
pub mod stream;
#[cfg(test)]
mod tests;
mod waiting;
