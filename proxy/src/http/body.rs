//! Bodies: frames with backpressure, in both directions.

use bytes::Bytes;

use super::fields::Fields;

/// A piece of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Some bytes.
    Data(Bytes),
    /// The trailers; nothing follows them.
    Trailers(Fields),
}

/// What is known of a body's length when its head is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    Empty,
    /// That many bytes, and no trailers.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}
