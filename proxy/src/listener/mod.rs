//! A connection arrives: accept, original destination, protocol detection, filter chain.

pub mod accept;
pub mod arrival;
pub mod client_hello;
pub mod connection;
pub mod detect;
pub mod filter_chain;
pub mod orig_dst;
pub mod plaintext_callers;
pub mod self_check;
pub mod server_first;
mod untold;
