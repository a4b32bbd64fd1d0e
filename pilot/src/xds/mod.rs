//! The xDS server: one task per stream over the protocol's state machine, and the encoded resources that streams share.
//!
//! [`service`] takes streams in, [`stream`] is the life of one, [`node`] reads who it is and [`identity`] proves it on
//! the [`encrypted`] port, `rights` finds out whether it may have keys, [`callers`] counts streams, [`registration`] keeps
//! workloads that live with their stream, [`cache`] what was encoded.

pub mod cache;
pub mod callers;
pub mod encrypted;
pub mod identity;
pub mod node;
pub mod registration;
mod rights;
pub mod service;
pub mod status;
pub mod stream;
#[cfg(test)]
mod tests;
