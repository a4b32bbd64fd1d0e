//! Writes heads and bodies, in one pass into a buffer.
//!
//! Framing is decided by the caller and written here and nowhere else: a `content-length` among the fields keeps its place,
//! but its value is the framing's, and `transfer-encoding` among the fields is never written.

use bytes::{BufMut, BytesMut};

use super::Framing;
use crate::http::body::BodyLength;
use crate::http::fields::{Field, Fields};
use crate::http::head::{Known, Method, RequestHead, ResponseHead, Version};

/// How a head is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadStyle {
    /// Write names as they are spelt, instead of in lower case.
    pub preserve_case: bool,
    /// Version of a response's status line; HTTP/1.1 for 2. Requests always say 1.1.
    pub version: Version,
    /// What to say about the connection.
    pub connection: ConnectionWord,
    /// Length of the body that a response to HEAD doesn't have, where the fields don't tell.
    pub length_of_absent_body: Option<u64>,
}

/// The `connection` field that a head gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConnectionWord {
    /// None (but an upgrade's own is kept).
    #[default]
    Silent,
    /// `close`.
    Close,
    /// `keep-alive`, for HTTP/1.0 clients that asked.
    KeepAlive,
}

/// How a request with a body of this length is framed.
pub fn request_framing(length: BodyLength) -> Framing {
    match length {
        BodyLength::Empty => Framing::None,
        BodyLength::Known(length) => Framing::Length(length),
        BodyLength::Unknown => Framing::Chunked,
    }
}

/// How a response is framed: none where RFC 9112 6.3 knows no body, whatever `length` says.
pub fn response_framing(method: Method, client: Version, status: u16, length: BodyLength) -> Framing {
    let tunnel = method == Method::Connect && (200..300).contains(&status);
    if method == Method::Head || matches!(status, 100..200 | 204 | 304) || tunnel {
        return Framing::None;
    }
    match length {
        BodyLength::Empty => Framing::Length(0),
        BodyLength::Known(length) => Framing::Length(length),
        BodyLength::Unknown if client == Version::Http10 => Framing::UntilClose,
        BodyLength::Unknown => Framing::Chunked,
    }
}

/// Appends a request head to `out`.
pub fn write_request(out: &mut BytesMut, head: &RequestHead, framing: Framing, style: HeadStyle) {
    let method = head.method_str().as_bytes();
    let target = if head.method() == Method::Connect { head.authority() } else { head.path() };
    out.reserve(method.len() + target.len() + head.authority().len() + head.fields.text_len() + 96);
    put(out, &[method, b" ", target, b" HTTP/1.1\r\n"]);
    let host = head.host_spelling().filter(|_| style.preserve_case);
    put(out, &[host.as_ref().map_or(b"host", |name| name), b": ", head.authority(), b"\r\n"]);
    // `content-length: 0` says that there is no body, as no framing at all does; a client that said it gets it said, and
    // methods that usually have a body say it anyway (RFC 9110 8.6), because some servers wait for it.
    let usual = matches!(head.method(), Method::Post | Method::Put | Method::Patch);
    let empty = Some(0).filter(|_| usual || head.fields.get(Known::ContentLength) == Some(b"0"));
    let length = if framing == Framing::None { Length::from(empty) } else { Length::of(framing) };
    write_fields(out, &head.fields, length, framing, style);
}

/// Appends a response head to `out`. With [`Framing::None`] a `content-length` among the fields stays, as responses to
/// HEAD and 304 carry it.
pub fn write_response(out: &mut BytesMut, head: &ResponseHead, framing: Framing, style: HeadStyle) {
    let reason = http::StatusCode::from_u16(head.status).ok().and_then(|status| status.canonical_reason());
    let reason = reason.unwrap_or("Unknown").as_bytes();
    out.reserve(reason.len() + head.fields.text_len() + 96);
    let version: &[u8] = if style.version == Version::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
    put(out, &[version, &digits(head.status), b" ", reason, b"\r\n"]);
    let length = match framing {
        Framing::None if matches!(head.status, 100..200 | 204) => Length::Drop,
        Framing::None if head.fields.contains(Known::ContentLength) => Length::AsItIs,
        Framing::None => Length::from(style.length_of_absent_body),
        framing => Length::of(framing),
    };
    write_fields(out, &head.fields, length, framing, style);
}

/// What becomes of `content-length`.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    Drop,
    AsItIs,
    Write(u64),
}

impl Length {
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Write(length),
            _ => Self::Drop,
        }
    }
}

impl From<Option<u64>> for Length {
    fn from(length: Option<u64>) -> Self {
        length.map_or(Self::Drop, Self::Write)
    }
}

fn write_fields(out: &mut BytesMut, fields: &Fields, length: Length, framing: Framing, style: HeadStyle) {
    let mut length_written = false;
    let mut connection_written = false;
    for field in fields.iter() {
        match field.known {
            Some(Known::TransferEncoding) => continue,
            Some(Known::ContentLength) => {
                match length {
                    Length::Write(length) if !length_written => {
                        write_name(out, field, style);
                        write_number(out, length);
                    }
                    Length::AsItIs if !length_written => write_line(out, field, style),
                    _ => {}
                }
                length_written = true;
            }
            Some(Known::Connection) if style.connection == ConnectionWord::Close => {}
            Some(Known::Connection) => {
                write_line(out, field, style);
                connection_written = true;
            }
            _ => write_line(out, field, style),
        }
    }
    match length {
        Length::Write(length) if !length_written => {
            out.put_slice(b"content-length: ");
            write_number(out, length);
        }
        _ => {}
    }
    if framing == Framing::Chunked {
        out.put_slice(b"transfer-encoding: chunked\r\n");
    }
    match style.connection {
        ConnectionWord::Close => out.put_slice(b"connection: close\r\n"),
        ConnectionWord::KeepAlive if !connection_written => out.put_slice(b"connection: keep-alive\r\n"),
        _ => {}
    }
    out.put_slice(b"\r\n");
}

fn write_line(out: &mut BytesMut, field: Field<'_>, style: HeadStyle) {
    write_name(out, field, style);
    put(out, &[field.value, b"\r\n"]);
}

fn write_name(out: &mut BytesMut, field: Field<'_>, style: HeadStyle) {
    match field.known {
        Some(known) if !style.preserve_case => out.put_slice(known.as_str().as_bytes()),
        _ => {
            let start = out.len();
            out.put_slice(field.name);
            if !style.preserve_case {
                out[start..].make_ascii_lowercase();
            }
        }
    }
    out.put_slice(b": ");
}

fn write_number(out: &mut BytesMut, number: u64) {
    let mut text = [0; 20];
    put(out, &[decimal(&mut text, number), b"\r\n"]);
}

fn put(out: &mut BytesMut, parts: &[&[u8]]) {
    for part in parts {
        out.put_slice(part);
    }
}

/// A status code as three digits.
fn digits(status: u16) -> [u8; 3] {
    let digit = |value: u16| b'0' + (value % 10) as u8;
    [digit(status / 100), digit(status / 10), digit(status)]
}

fn decimal(text: &mut [u8; 20], mut number: u64) -> &[u8] {
    let mut start = text.len();
    loop {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &text[start..];
        }
    }
}

/// A body that doesn't have the length that was announced. The message can't be completed: the connection has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongLength {
    /// More than announced.
    #[error("body is longer than announced")]
    TooLong,
    /// Less than announced.
    #[error("body is shorter than announced")]
    TooShort,
}

/// The encoder of one body.
#[derive(Debug, Clone, Copy)]
pub struct BodyEncoder {
    framing: Framing,
    done: bool,
}

impl BodyEncoder {
    /// An encoder for a message whose head said `framing`.
    pub fn new(framing: Framing) -> Self {
        Self { framing, done: false }
    }

    /// Begins a piece of `len` bytes: appends what comes before it to `out`, and says whether the piece itself is to be
    /// written (pieces of a message without a body are not). After the piece comes [`BodyEncoder::after`].
    pub fn before(&mut self, len: usize, out: &mut BytesMut) -> Result<bool, WrongLength> {
        debug_assert!(!self.done);
        match &mut self.framing {
            Framing::None => return Ok(false),
            Framing::UntilClose => {}
            Framing::Length(left) => *left = left.checked_sub(len as u64).ok_or(WrongLength::TooLong)?,
            Framing::Chunked if len == 0 => return Ok(false),
            Framing::Chunked => {
                let mut text = [0; 18];
                out.put_slice(chunk_size(&mut text, len));
            }
        }
        Ok(len > 0)
    }

    /// What follows each piece.
    pub fn after(&self) -> &'static [u8] {
        if self.framing == Framing::Chunked { b"\r\n" } else { b"" }
    }

    /// Appends a whole piece to `out`.
    pub fn piece(&mut self, data: &[u8], out: &mut BytesMut) -> Result<(), WrongLength> {
        out.reserve(data.len() + 24);
        if self.before(data.len(), out)? {
            put(out, &[data, self.after()]);
        }
        Ok(())
    }

    /// Ends the body: appends the last chunk and its trailers. Trailers are dropped where the framing has no place for
    /// them.
    pub fn end(
        &mut self,
        trailers: Option<&Fields>,
        preserve_case: bool,
        out: &mut BytesMut,
    ) -> Result<(), WrongLength> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        match self.framing {
            Framing::Length(left) if left > 0 => return Err(WrongLength::TooShort),
            Framing::Chunked => {
                out.put_slice(b"0\r\n");
                let style = HeadStyle { preserve_case, ..HeadStyle::default() };
                for field in trailers.iter().flat_map(|fields| fields.iter()) {
                    write_line(out, field, style);
                }
                out.put_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }
}

fn chunk_size(text: &mut [u8; 18], mut len: usize) -> &[u8] {
    let mut start = text.len() - 2;
    text[start..].copy_from_slice(b"\r\n");
    loop {
        start -= 1;
        text[start] = b"0123456789abcdef"[len % 16];
        len /= 16;
        if len == 0 {
            return &text[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.append(*name, value.as_bytes());
        }
        fields
    }

    fn request(head: &RequestHead, framing: Framing, style: HeadStyle) -> String {
        let mut out = BytesMut::new();
        write_request(&mut out, head, framing, style);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn response(
        status: u16,
        lines: &[(&str, &str)],
        framing: Framing,
        connection: ConnectionWord,
        version: Version,
    ) -> String {
        let head = ResponseHead { fields: fields(lines), ..ResponseHead::new(status) };
        let mut out = BytesMut::new();
        write_response(&mut out, &head, framing, HeadStyle { connection, version, ..HeadStyle::default() });
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn requests_have_one_framing() {
        let mut head = RequestHead::new();
        head.set_method(b"POST");
        head.set_authority(b"h:1");
        head.set_path(b"/p?q");
        head.fields =
            fields(&[("X-Foo", "1"), ("Content-Length", "7"), ("transfer-encoding", "x"), ("b", "2")]);
        let style = HeadStyle::default();
        let start = "POST /p?q HTTP/1.1\r\nhost: h:1\r\nx-foo: 1\r\n";
        assert_eq!(
            request(&head, Framing::Length(9), style),
            format!("{start}content-length: 9\r\nb: 2\r\n\r\n")
        );
        assert_eq!(
            request(&head, Framing::Chunked, style),
            format!("{start}b: 2\r\ntransfer-encoding: chunked\r\n\r\n")
        );
        let empty = format!("{start}content-length: 0\r\nb: 2\r\n\r\n");
        assert_eq!(request(&head, Framing::None, style), empty);
        head.set_method(b"GET");
        let start = start.replace("POST", "GET");
        assert_eq!(request(&head, Framing::None, style), format!("{start}b: 2\r\n\r\n"));
        head.set_method(b"POST");
        head.fields.set("content-length", b"0");
        assert_eq!(request(&head, Framing::None, style), empty);
        head.set_host_spelling(b"Host");
        assert_eq!(
            request(&head, Framing::None, HeadStyle { preserve_case: true, ..style }),
            "POST /p?q HTTP/1.1\r\nHost: h:1\r\nX-Foo: 1\r\ncontent-length: 0\r\nb: 2\r\n\r\n"
        );
    }

    #[test]
    fn responses_say_what_their_client_needs() {
        use ConnectionWord::{Close, KeepAlive, Silent};
        use Version::{Http10, Http11};
        for (status, lines, framing, word, version, text) in [
            (
                200,
                &[][..],
                Framing::Length(0),
                Silent,
                Http11,
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            ),
            (
                204,
                &[("content-length", "5")],
                Framing::None,
                Silent,
                Http11,
                "HTTP/1.1 204 No Content\r\n\r\n",
            ),
            (
                304,
                &[("content-length", "5")],
                Framing::None,
                Close,
                Http11,
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
            ),
            (200, &[], Framing::UntilClose, Close, Http10, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n"),
            (
                299,
                &[],
                Framing::Length(12),
                KeepAlive,
                Http10,
                "HTTP/1.0 299 Unknown\r\ncontent-length: 12\r\nconnection: keep-alive\r\n\r\n",
            ),
            (
                101,
                &[("upgrade", "x"), ("connection", "upgrade")],
                Framing::None,
                Silent,
                Http11,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            ),
        ] {
            assert_eq!(response(status, lines, framing, word, version), text);
        }
    }

    #[test]
    fn statuses_without_a_body_are_framed_without_one() {
        use BodyLength::{Empty, Known, Unknown};
        use Version::{Http2, Http10, Http11};
        for (method, client, status, length, framing) in [
            (Method::Get, Http11, 200, Unknown, Framing::Chunked),
            (Method::Get, Http10, 200, Unknown, Framing::UntilClose),
            (Method::Get, Http11, 200, Known(3), Framing::Length(3)),
            (Method::Get, Http11, 200, Empty, Framing::Length(0)),
            (Method::Head, Http11, 200, Known(3), Framing::None),
            (Method::Get, Http11, 304, Known(3), Framing::None),
            (Method::Get, Http2, 204, Unknown, Framing::None),
            (Method::Connect, Http11, 200, Unknown, Framing::None),
            (Method::Connect, Http11, 403, Empty, Framing::Length(0)),
        ] {
            assert_eq!(response_framing(method, client, status, length), framing);
        }
    }

    #[test]
    fn a_body_of_another_length_is_noticed() {
        let mut out = BytesMut::new();
        let mut encoder = BodyEncoder::new(Framing::Length(3));
        assert_eq!(encoder.piece(b"ab", &mut out), Ok(()));
        assert_eq!(encoder.end(None, false, &mut out), Err(WrongLength::TooShort));
        let mut encoder = BodyEncoder::new(Framing::Length(3));
        assert_eq!(encoder.piece(b"abcd", &mut out), Err(WrongLength::TooLong));
        assert_eq!(&out[..], b"ab");
    }
}
