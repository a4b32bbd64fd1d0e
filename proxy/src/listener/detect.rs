//! Protocol detection: what a client speaks, from its first bytes.
//!
//! The bytes are read, not peeked: what was read goes on with the connection ([`Detected::received`]), so that a client
//! which sends half a request line does not keep us awake. The wait is bounded by the listener's time-out and by
//! [`MAX_HELLO`] bytes. A server that speaks first (SMTP, MySQL) never sends a byte here; with a time-out its connection
//! goes on as plain TCP, and a client that half-closes or stops early is judged by what it sent.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::client_hello::{self, Hello, MAX_HELLO};
use crate::config::listener::{Inspect, TransportProtocol};
use crate::io::Stream;

/// HTTP/2's connection preface.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that counts as HTTP; the longest registered one is UPDATEREDIRECTREF.
const MAX_METHOD: usize = 32;

/// What detection found, and the bytes that it read on the way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Detected {
    /// TLS or not.
    pub transport: TransportProtocol,
    /// SNI, lower-cased.
    pub server_name: Option<Arc<str>>,
    /// ALPN, or `http/1.0`, `http/1.1`, `h2c`.
    pub application_protocols: Vec<Arc<str>>,
    /// Everything that was read; the first thing that whoever serves the connection looks at.
    pub received: BytesMut,
}

/// Why a connection ends during detection.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// Nothing conclusive came in time, and the listener closes such connections.
    #[error("the client sent nothing conclusive in time")]
    Timeout,
    /// The client left without a byte.
    #[error("the client closed before it sent anything")]
    Closed,
    /// Reading failed.
    #[error("read failed")]
    Io(#[from] io::Error),
}

/// What the first bytes say so far.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// More bytes could change it.
    Undecided,
    /// It is this.
    Tls(client_hello::ClientHello),
    /// `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
    /// Something else.
    Opaque,
}

/// Reads until the protocol is known, for a listener that asked for it with `inspect`. `received` may hold bytes already:
/// the client of a CONNECT may send some with its request.
pub async fn detect(
    stream: &Stream,
    inspect: &Inspect,
    mut received: BytesMut,
) -> Result<Detected, DetectError> {
    if !inspect.tls && !inspect.http {
        return Ok(Detected { received, ..Detected::default() });
    }
    let verdict = match inspect.timeout {
        None => read_until_known(stream, inspect, &mut received).await?,
        Some(limit) => {
            match tokio::time::timeout(limit, read_until_known(stream, inspect, &mut received)).await {
                Ok(verdict) => verdict?,
                Err(_) if inspect.continue_on_timeout => Verdict::Opaque,
                Err(_) => return Err(DetectError::Timeout),
            }
        }
    };
    Ok(detected(verdict, received))
}

async fn read_until_known(
    stream: &Stream,
    inspect: &Inspect,
    received: &mut BytesMut,
) -> Result<Verdict, DetectError> {
    loop {
        match judge(inspect, received) {
            Verdict::Undecided if received.len() < MAX_HELLO => {}
            Verdict::Undecided => return Ok(Verdict::Opaque),
            known => return Ok(known),
        }
        received.reserve(512);
        let room = (MAX_HELLO - received.len()).min(received.chunk_mut().len());
        if stream.read_buf(&mut received.limit(room)).await? == 0 {
            // Half a line is all that will come; it is not HTTP, but an opaque upstream may know what to do with it.
            return if received.is_empty() { Err(DetectError::Closed) } else { Ok(Verdict::Opaque) };
        }
    }
}

fn detected(verdict: Verdict, received: BytesMut) -> Detected {
    match verdict {
        Verdict::Tls(hello) => Detected {
            transport: TransportProtocol::Tls,
            server_name: hello.server_name,
            application_protocols: hello.protocols,
            received,
        },
        Verdict::Http(protocol) => {
            Detected { application_protocols: vec![protocol.into()], received, ..Detected::default() }
        }
        Verdict::Undecided | Verdict::Opaque => Detected { received, ..Detected::default() },
    }
}

fn judge(inspect: &Inspect, bytes: &[u8]) -> Verdict {
    if bytes.is_empty() {
        return Verdict::Undecided;
    }
    if inspect.tls {
        match client_hello::parse(bytes) {
            Hello::Found(hello) => return Verdict::Tls(hello),
            Hello::Partial => return Verdict::Undecided,
            Hello::NotTls => {}
        }
    }
    if inspect.http { http(bytes) } else { Verdict::Opaque }
}

/// An HTTP/2 preface or an HTTP/1 request line, judged as early as the bytes allow: a binary protocol is opaque at its
/// first byte that no method may have.
fn http(bytes: &[u8]) -> Verdict {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Verdict::Http("h2c") } else { Verdict::Undecided };
    }
    // One empty line before the request line is to be ignored (RFC 9112 2.2).
    let bytes = bytes.strip_prefix(b"\r\n").or_else(|| bytes.strip_prefix(b"\n")).unwrap_or(bytes);
    if matches!(bytes, b"" | b"\r") {
        return Verdict::Undecided;
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return if may_be_request_line(bytes) { Verdict::Undecided } else { Verdict::Opaque };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let complete =
        method.is_some_and(is_method) && target.is_some_and(|t| !t.is_empty()) && words.next().is_none();
    match version {
        Some(b"HTTP/1.1") if complete => Verdict::Http("http/1.1"),
        Some(b"HTTP/1.0") if complete => Verdict::Http("http/1.0"),
        _ => Verdict::Opaque,
    }
}

/// True where `bytes`, without a line end so far, could become a request line.
fn may_be_request_line(bytes: &[u8]) -> bool {
    match bytes.iter().position(|b| *b == b' ') {
        Some(end) => is_method(&bytes[..end]) && !bytes[end..].contains(&0),
        None => bytes.len() <= MAX_METHOD && bytes.iter().all(|b| is_token(*b)),
    }
}

fn is_method(bytes: &[u8]) -> bool {
    (1..=MAX_METHOD).contains(&bytes.len()) && bytes.iter().all(|b| is_token(*b))
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
