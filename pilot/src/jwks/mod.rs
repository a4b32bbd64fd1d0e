//! Key sets of the issuers of tokens (RequestAuthentication), which pilot fetches for all proxies.
//!
//! `document` knows what is fetched, `fetch` gets one, `keeper` keeps them up to date: one task, off the way of configuration,
//! that reads which are wanted from snapshots and hands what it gets to the writer.

pub mod document;
pub mod fetch;
pub mod keeper;
