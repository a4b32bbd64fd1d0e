//! The heads of requests and responses: one type for HTTP/1 and HTTP/2.
//!
//! A request is method, scheme, authority, path and an ordered list of fields, as HTTP/2 sees it; the HTTP/1 codec maps
//! the request line and `Host` to them and back, so `Host` is never in `fields` (nor are `:authority` and its kin).
//! Bytes are kept as they came: paths and values need not be UTF-8. Heads are meant to be cleared and used again.

use std::fmt;

pub use super::fields::{Field, Fields, is_token, tokens};
use super::fields::{Span, push};
pub use super::name::{Known, Name};

/// HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As access logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// Request methods that mean something to the proxy, and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// HEAD: its response has no body.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// PATCH.
    Patch,
    /// TRACE.
    Trace,
    /// CONNECT.
    Connect,
    /// Any other token; [`RequestHead::method_str`] says which.
    Other,
}

impl Method {
    /// The method that `token` names. Methods are case-sensitive (RFC 9110 9.1).
    pub fn find(token: &[u8]) -> Self {
        match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    fn as_str(self) -> Option<&'static str> {
        Some(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other => return None,
        })
    }
}

/// Scheme of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// `http`.
    #[default]
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a request asks for, before its body.
#[derive(Clone, Default)]
pub struct RequestHead {
    /// Version it came in.
    pub version: Version,
    /// Scheme: of an absolute-form target or `:scheme`, else `http` on plaintext.
    pub scheme: Scheme,
    /// All header fields but `Host`.
    pub fields: Fields,
    method: Method,
    /// Method (if not a known one), authority, path and protocol.
    line: Vec<u8>,
    other_method: Span,
    authority: Span,
    path: Span,
    protocol: Option<Span>,
    /// How the client spelt `Host`, for connections that keep header case.
    host_spelling: Option<[u8; 4]>,
}

impl RequestHead {
    /// `GET` of an empty path; a head to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to [`RequestHead::new`], keeping the buffers.
    pub fn clear(&mut self) {
        self.version = Version::default();
        self.scheme = Scheme::default();
        self.fields.clear();
        self.method = Method::default();
        self.line.clear();
        self.other_method = Span::default();
        self.authority = Span::default();
        self.path = Span::default();
        self.protocol = None;
        self.host_spelling = None;
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method's text.
    pub fn method_str(&self) -> &str {
        self.method
            .as_str()
            .unwrap_or_else(|| std::str::from_utf8(self.other_method.of(&self.line)).unwrap_or_default())
    }

    /// Sets the method; false (and no change) where `token` isn't a token.
    pub fn set_method(&mut self, token: &[u8]) -> bool {
        if !is_token(token) {
            return false;
        }
        self.method = Method::find(token);
        if self.method == Method::Other {
            self.other_method = push(&mut self.line, token);
        }
        true
    }

    /// `Host` or `:authority`, as the client wrote it (port included); empty where there is none.
    pub fn authority(&self) -> &[u8] {
        self.authority.of(&self.line)
    }

    /// Replaces the authority. CR, LF, NUL and spaces are left out.
    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = push_line(&mut self.line, authority);
    }

    /// Path and query as they came (`/a?b`, `*`); empty for CONNECT in authority-form.
    pub fn path(&self) -> &[u8] {
        self.path.of(&self.line)
    }

    /// Replaces path and query. CR, LF, NUL and spaces are left out.
    pub fn set_path(&mut self, path: &[u8]) {
        self.path = push_line(&mut self.line, path);
    }

    /// The path without its query.
    pub fn path_only(&self) -> &[u8] {
        let path = self.path();
        path.iter().position(|byte| *byte == b'?').map_or(path, |at| &path[..at])
    }

    /// What follows the first `?` of the path, if there is one.
    pub fn query(&self) -> Option<&[u8]> {
        let path = self.path();
        path.iter().position(|byte| *byte == b'?').map(|at| &path[at + 1..])
    }

    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.protocol.map(|span| span.of(&self.line))
    }

    /// Sets `:protocol`.
    pub fn set_protocol(&mut self, protocol: Option<&[u8]>) {
        self.protocol = protocol.map(|bytes| push_line(&mut self.line, bytes));
    }

    /// True where the client waits for a 100 before it sends its body (RFC 9110 10.1.1; HTTP/1.0 clients never do).
    pub fn expects_continue(&self) -> bool {
        self.version != Version::Http10
            && self.fields.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }

    /// The upgrade that the client asks for: the value of `upgrade`, if `connection` names it. An extended CONNECT is read as one.
    pub fn upgrade(&self) -> Option<&[u8]> {
        if self.version == Version::Http10 {
            return None;
        }
        self.fields.get(Known::Upgrade).filter(|_| self.fields.has_token(Known::Connection, b"upgrade"))
    }

    /// True for `content-type: application/grpc`, alone or followed by `+` or `;` (not `application/grpc-web`).
    pub fn is_grpc(&self) -> bool {
        self.fields.get(Known::ContentType).is_some_and(is_grpc_content_type)
    }

    /// Bytes that the head's buffers hold.
    pub fn capacity(&self) -> usize {
        self.fields.capacity() + self.line.capacity()
    }

    pub(super) fn host_spelling(&self) -> Option<[u8; 4]> {
        self.host_spelling
    }

    pub(super) fn set_host_spelling(&mut self, name: &[u8]) {
        self.host_spelling = name.try_into().ok();
    }
}

/// True for `application/grpc`, alone or followed by `+` or `;`.
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// Appends what may stand in a request line.
fn push_line(line: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = line.len();
    if bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b' ' | 0)) {
        line.extend(bytes.iter().filter(|byte| !matches!(byte, b'\r' | b'\n' | b' ' | 0)));
    } else {
        line.extend_from_slice(bytes);
    }
    Span::new(start, line.len() - start)
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("version", &self.version)
            .field("method", &self.method_str())
            .field("scheme", &self.scheme)
            .field("authority", &String::from_utf8_lossy(self.authority()))
            .field("path", &String::from_utf8_lossy(self.path()))
            .field("protocol", &self.protocol().map(String::from_utf8_lossy))
            .field("fields", &self.fields)
            .finish()
    }
}

/// What a response says, before its body.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Version it came in.
    pub version: Version,
    /// Status code, 100 to 999.
    pub status: u16,
    /// All header fields.
    pub fields: Fields,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new(200)
    }
}

impl ResponseHead {
    /// A head with this status and no fields.
    pub fn new(status: u16) -> Self {
        Self { version: Version::default(), status, fields: Fields::new() }
    }

    /// Back to an empty 200, keeping the buffers.
    pub fn clear(&mut self) {
        self.version = Version::default();
        self.status = 200;
        self.fields.clear();
    }

    /// True for 1xx, of which any number may come before the response. 101 is one too, but ends HTTP.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_filled_changed_and_cleared() {
        let mut head = RequestHead::new();
        assert!(head.set_method(b"PURGE"));
        head.set_authority(b"a.example:80");
        head.set_path(b"/x?y=1?z");
        assert_eq!((head.method(), head.method_str()), (Method::Other, "PURGE"));
        assert_eq!((head.path_only(), head.query()), (&b"/x"[..], Some(&b"y=1?z"[..])));
        head.set_path(b"/new path\r\nx: y");
        assert_eq!(head.path(), b"/newpathx:y");
        assert_eq!(head.authority(), b"a.example:80");
        assert!(head.set_method(b"HEAD"));
        assert_eq!((head.method(), head.method_str()), (Method::Head, "HEAD"));
        assert!(!head.set_method(b"no token") && head.method() == Method::Head);
        head.clear();
        assert_eq!((head.method_str(), head.authority(), head.path()), ("GET", &b""[..], &b""[..]));
    }

    #[test]
    fn upgrade_needs_connection_and_version() {
        let mut head = RequestHead::new();
        head.fields.append("Upgrade", b"websocket");
        assert_eq!(head.upgrade(), None);
        head.fields.append("Connection", b"keep-alive, Upgrade");
        assert_eq!(head.upgrade(), Some(&b"websocket"[..]));
        head.version = Version::Http10;
        assert_eq!(head.upgrade(), None);
    }

    #[test]
    fn grpc_content_types() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;x=y", true),
            ("application/grpc-web", false),
            ("application/grp", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc_content_type(value.as_bytes()), grpc, "{value}");
        }
    }
}
