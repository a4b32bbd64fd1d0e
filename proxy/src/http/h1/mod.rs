//! HTTP/1 as bytes: a codec without I/O (but for [`transfer`], which joins it with a stream), for both sides (RFC 9112, with the message rules of RFC 9110).
//!
//! A peer that is parsed differently by two proxies can smuggle requests, so nothing is repaired here: a message that is
//! not plainly valid is refused. Steps: [`scan`] finds the end of a head in what was read so far and refuses stray CR, LF
//! and folded lines; [`parse`] reads the head once and decides how its body is framed; [`decode`] takes bodies apart;
//! [`encode`] writes heads and bodies; [`hop_by_hop`] is the one place that takes out what belongs to one connection.
//! `rules` is the table of tests, a row for each rule of the RFC.

pub mod decode;
pub mod encode;
pub mod hop_by_hop;
pub mod parse;
pub mod scan;
pub mod transfer;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;

pub use decode::{BodyDecoder, Decoded};
pub use encode::{BodyEncoder, HeadStyle};
pub use parse::{Received, RequestRules, parse_request, parse_response};
pub use scan::HeadScan;

/// Lines that are parsed at once; `Limits::max_headers` may be lower, never higher.
const MOST_HEADERS: usize = 256;

/// What a head may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, start line and empty line included.
    pub max_head_bytes: usize,
    /// Field lines.
    pub max_headers: usize,
}

impl Default for Limits {
    /// Envoy's: 60 KiB, 100 lines.
    fn default() -> Self {
        Self { max_head_bytes: 60 * 1024, max_headers: 100 }
    }
}

/// How the length of a body is known (RFC 9112 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// That many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection is closed; responses only.
    UntilClose,
}

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It breaks a rule.
    #[error("{0}")]
    Syntax(&'static str),
    /// Head or trailers have too many bytes.
    #[error("header section too large")]
    TooLarge,
    /// Head or trailers have too many lines.
    #[error("too many header fields")]
    TooManyFields,
    /// An HTTP/1.1 request without `Host`.
    #[error("no Host")]
    NoHost,
    /// A transfer coding that isn't spoken here.
    #[error("unsupported transfer coding")]
    TransferCoding,
    /// The connection ended within the message.
    #[error("connection closed within a message")]
    Truncated,
}
