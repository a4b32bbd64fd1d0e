//! `%COMMAND%`s of header values and access logs, parsed once.

/// A command that is evaluated per request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `%PROTOCOL%`.
    Protocol,
}
