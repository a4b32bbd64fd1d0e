//! A connection arrives: accept, original destination, protocol detection, filter chain.

pub mod connection;
pub mod filter_chain;
