//! A TLS ClientHello, read without terminating TLS: the server name and the application protocols.
//!
//! The input is what a stranger sent first, so nothing is trusted: every length is checked against what is there, and
//! the parser only ever looks forward. The hello may be split over several TLS records (RFC 8446 5.1).

use std::sync::Arc;

/// Largest hello that we look at; what Envoy's inspector allows.
pub const MAX_HELLO: usize = 64 * 1024;

/// Names in an ALPN list that we keep; a hello holds at most some thousand, nobody sends more than a handful.
const MAX_PROTOCOLS: usize = 32;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What a ClientHello says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Host of the server_name extension (RFC 6066), lower-cased.
    pub server_name: Option<Arc<str>>,
    /// Protocols of the ALPN extension (RFC 7301), in the client's order.
    pub protocols: Vec<Arc<str>>,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Hello {
    /// A whole ClientHello.
    Found(ClientHello),
    /// The beginning of one.
    Partial,
    /// Something else.
    NotTls,
}

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Hello {
    // The common first look, without any copying: a handshake record of TLS 1.x that starts with a ClientHello.
    let begins_like_tls = [RECORD_HANDSHAKE, 3].iter().zip(bytes).all(|(want, got)| want == got)
        && bytes.get(5).is_none_or(|kind| *kind == HANDSHAKE_CLIENT_HELLO);
    if !begins_like_tls {
        return Hello::NotTls;
    }
    let handshake = match first_handshake(bytes) {
        Some(Ok(message)) => message,
        Some(Err(NotTls)) => return Hello::NotTls,
        None if bytes.len() >= MAX_HELLO => return Hello::NotTls,
        None => return Hello::Partial,
    };
    match client_hello(&handshake) {
        Some(hello) => Hello::Found(hello),
        None => Hello::NotTls,
    }
}

struct NotTls;

/// The body of the first handshake message, put together from its records. `None`: not all of it is here yet.
fn first_handshake(mut bytes: &[u8]) -> Option<Result<Vec<u8>, NotTls>> {
    let mut message = Vec::new();
    loop {
        let (header, rest) = bytes.split_at_checked(5)?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // An empty record or one above 2^14 bytes is not TLS; without this check a peer could make us wait for ever.
        if header[0] != RECORD_HANDSHAKE || header[1] != 3 || length == 0 || length > 1 << 14 {
            return Some(Err(NotTls));
        }
        let here = &rest[..length.min(rest.len())];
        message.extend_from_slice(here);
        if let Some(&[kind, a, b, c]) = message.first_chunk::<4>() {
            let total = 4 + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c);
            if kind != HANDSHAKE_CLIENT_HELLO || total > MAX_HELLO {
                return Some(Err(NotTls));
            }
            if message.len() >= total {
                message.truncate(total);
                message.drain(..4);
                return Some(Ok(message));
            }
        }
        bytes = rest.get(length..)?;
    }
}

/// The fields of a hello; `None` where a length points outside.
fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Cursor(body);
    body.take(2 + 32)?; // legacy version, random
    body.prefixed_u8()?; // session id
    body.prefixed_u16()?; // cipher suites
    body.prefixed_u8()?; // compression methods
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Some(hello); // TLS 1.2 and before may have no extensions
    }
    let mut extensions = Cursor(body.prefixed_u16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Cursor(extensions.prefixed_u16()?);
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(content)?,
            EXTENSION_ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut content: Cursor<'_>) -> Option<Option<Arc<str>>> {
    let mut list = Cursor(content.prefixed_u16()?);
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.prefixed_u16()?;
        if kind == 0 {
            // Host names are ASCII; anything else can match no chain, so it counts as no name.
            let text = std::str::from_utf8(name).ok().filter(|text| text.is_ascii() && !text.is_empty());
            return Some(text.map(|text| text.to_ascii_lowercase().into()));
        }
    }
    Some(None)
}

fn protocols(mut content: Cursor<'_>) -> Option<Vec<Arc<str>>> {
    let mut list = Cursor(content.prefixed_u16()?);
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let name = list.prefixed_u8()?;
        if found.len() < MAX_PROTOCOLS {
            found.extend(std::str::from_utf8(name).ok().map(Arc::from));
        }
    }
    Some(found)
}

/// Bytes that are consumed from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn prefixed_u8(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length)
    }

    fn prefixed_u16(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixed_u8(bytes: &[u8]) -> Vec<u8> {
        [&[bytes.len() as u8], bytes].concat()
    }

    fn prefixed_u16(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), prefixed_u16(content)].concat()
    }

    /// The handshake message of a hello with a grease extension between the two that matter.
    fn message(server_name: Option<&str>, alpn: &[&str]) -> Vec<u8> {
        let mut extensions = extension(0x0a0a, &[]);
        if let Some(name) = server_name {
            let entry = [vec![0], prefixed_u16(name.as_bytes())].concat();
            extensions.extend(extension(EXTENSION_SERVER_NAME, &prefixed_u16(&entry)));
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn.iter().flat_map(|p| prefixed_u8(p.as_bytes())).collect();
            extensions.extend(extension(EXTENSION_ALPN, &prefixed_u16(&list)));
        }
        let body = [
            vec![3, 3],
            vec![7; 32],
            prefixed_u8(&[9; 32]),
            prefixed_u16(&[0x13, 0x01, 0x13, 0x02]),
            prefixed_u8(&[0]),
            prefixed_u16(&extensions),
        ]
        .concat();
        [&[1, 0], &(body.len() as u16).to_be_bytes()[..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [vec![22, 3, 1], prefixed_u16(part)].concat()).collect()
    }

    /// A hello as it comes over the wire.
    pub fn hello(server_name: Option<&str>, alpn: &[&str]) -> Vec<u8> {
        records(&message(server_name, alpn), 1 << 14)
    }

    fn found(server_name: Option<&str>, alpn: &[&str]) -> Hello {
        let protocols = alpn.iter().map(|p| Arc::from(*p)).collect();
        Hello::Found(ClientHello { server_name: server_name.map(Arc::from), protocols })
    }

    #[test]
    fn names_and_protocols_are_read() {
        assert_eq!(
            parse(&hello(Some("Reviews.Default"), &["h2", "http/1.1"])),
            found(Some("reviews.default"), &["h2", "http/1.1"])
        );
        assert_eq!(parse(&hello(None, &[])), found(None, &[]));
        assert_eq!(parse(&hello(Some(""), &["istio"])), found(None, &["istio"]));
    }

    #[test]
    fn a_hello_may_be_split_over_records_and_reads() {
        let whole = message(Some("a.example"), &["h2"]);
        for size in [1, 3, 17, 4096] {
            let bytes = records(&whole, size);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Hello::Partial, "record size {size}, {end} bytes");
            }
            assert_eq!(parse(&bytes), found(Some("a.example"), &["h2"]));
        }
    }

    #[test]
    fn what_is_not_a_hello_is_seen_at_once() {
        let mut broken = hello(Some("a"), &[]);
        broken[9 + 2 + 32] = 255; // the session id is longer than the message
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"\x16\x02".to_vec(),
            b"\x16\x03\x01\x00\x00\x01".to_vec(),
            b"\x16\x03\x01\xff\xff\x01".to_vec(),
            b"\x16\x03\x01\x00\x05\x02".to_vec(),
            b"\x15\x03\x01\x00\x02\x02".to_vec(),
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff".to_vec(),
            broken,
        ] {
            assert_eq!(parse(&bytes), Hello::NotTls, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300), real in any::<bool>(), at in 0usize..200, to in any::<u8>()) {
            parse(&bytes);
            if real {
                bytes = hello(Some("a.example.com"), &["h2", "http/1.1"]);
                let at = at % bytes.len();
                bytes[at] = to;
                parse(&bytes);
            }
        }
    }
}
