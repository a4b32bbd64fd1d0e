//! The rules of RFC 9112 (and of RFC 9110 where it speaks of messages), a row each.

use bytes::BytesMut;

use super::*;
use crate::http::head::{Method, RequestHead, ResponseHead, Scheme, Version};

/// What becomes of a message.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Accepted: framing, and whether the connection stays.
    Ok(Framing, bool),
    Refused(Malformed),
    /// More bytes are needed.
    Incomplete,
}
use Outcome::{Incomplete, Ok as Accept, Refused};

fn request_with(bytes: &[u8], rules: &RequestRules) -> (Outcome, RequestHead) {
    let mut head = RequestHead::new();
    let outcome = match HeadScan::default().find(bytes, &Limits::default()) {
        Err(error) => Refused(error),
        Ok(None) => Incomplete,
        Ok(Some(end)) => match parse_request(&bytes[..end], &mut head, rules) {
            Ok(received) => Accept(received.framing, received.persistent),
            Err(error) => Refused(error),
        },
    };
    (outcome, head)
}

fn request(bytes: &[u8]) -> (Outcome, RequestHead) {
    request_with(bytes, &RequestRules::default())
}

fn response(bytes: &[u8], method: Method) -> (Outcome, ResponseHead) {
    let mut head = ResponseHead::default();
    let outcome = match HeadScan::default().find(bytes, &Limits::default()) {
        Err(error) => Refused(error),
        Ok(None) => Incomplete,
        Ok(Some(end)) => match parse_response(&bytes[..end], &mut head, method) {
            Ok(received) => Accept(received.framing, received.persistent),
            Err(error) => Refused(error),
        },
    };
    (outcome, head)
}

fn syntax(what: &'static str) -> Outcome {
    Refused(Malformed::Syntax(what))
}

const PLAIN: Outcome = Accept(Framing::None, true);

#[test]
fn requests() {
    // Rows: section (of RFC 9112 unless it says 9110), rule, message up to the empty line, outcome.
    let rows: &[(&str, &str, &[u8], Outcome)] = &[
        (
            "2.1",
            "a message is a start line, fields and an empty line",
            b"GET / HTTP/1.1\r\nHost: a\r\n",
            PLAIN,
        ),
        (
            "2.2",
            "an empty line before the request line is skipped",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n",
            PLAIN,
        ),
        (
            "2.2",
            "but not any number of them",
            b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n",
            syntax("empty lines before the start line"),
        ),
        ("2.2", "LF alone ends no line", b"GET / HTTP/1.1\nHost: a\r\n", syntax("LF without CR")),
        ("2.2", "LF alone ends no field", b"GET / HTTP/1.1\r\nHost: a\nb: c\r\n", syntax("LF without CR")),
        ("2.2", "CR alone ends no line", b"GET / HTTP/1.1\rHost: a\r\n", syntax("CR without LF")),
        ("2.2", "CR is no white space", b"GET / HTTP/1.1\r\nHost: a\r b\r\n", syntax("CR without LF")),
        (
            "2.2",
            "no white space before the first field",
            b"GET / HTTP/1.1\r\n Host: a\r\n",
            syntax("folded or indented line"),
        ),
        ("2.3", "HTTP/1.0 is understood and closes", b"GET / HTTP/1.0\r\n", Accept(Framing::None, false)),
        ("2.3", "no other major version", b"GET / HTTP/2.0\r\nHost: a\r\n", syntax("HTTP version")),
        ("2.3", "no other minor version", b"GET / HTTP/1.2\r\nHost: a\r\n", syntax("HTTP version")),
        ("2.3", "the name is case-sensitive", b"GET / http/1.1\r\nHost: a\r\n", syntax("HTTP version")),
        ("2.3", "HTTP/0.9 is not spoken", b"GET /\r\n", syntax("request line")),
        (
            "3",
            "single spaces part the request line",
            b"GET  / HTTP/1.1\r\nHost: a\r\n",
            syntax("request line"),
        ),
        ("3", "no tab does", b"GET\t/ HTTP/1.1\r\nHost: a\r\n", syntax("request line")),
        ("3", "nothing follows the version", b"GET / HTTP/1.1 \r\nHost: a\r\n", syntax("line end")),
        ("3", "no space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n", syntax("HTTP version")),
        ("3.1", "any token is a method", b"M-SEARCH / HTTP/1.1\r\nHost: a\r\n", PLAIN),
        ("3.1", "others are none", b"G(T / HTTP/1.1\r\nHost: a\r\n", syntax("request line")),
        ("3.2", "Host is needed", b"GET / HTTP/1.1\r\n", Refused(Malformed::NoHost)),
        ("3.2", "once", b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n", syntax("more than one Host")),
        ("3.2", "it may be empty", b"GET / HTTP/1.1\r\nHost:\r\n", PLAIN),
        ("3.2", "but not invalid", b"GET / HTTP/1.1\r\nHost: a/b\r\n", syntax("Host")),
        ("3.2", "nor have spaces", b"GET / HTTP/1.1\r\nHost: a b\r\n", syntax("Host")),
        ("9110 4.2.4", "nor user information", b"GET / HTTP/1.1\r\nHost: u@a\r\n", syntax("Host")),
        ("3.2", "HTTP/1.0 needs none", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", PLAIN),
        (
            "3.2.1",
            "origin-form begins with a slash",
            b"GET a HTTP/1.1\r\nHost: a\r\n",
            syntax("request target"),
        ),
        ("3.2.2", "absolute-form", b"GET http://b/c HTTP/1.1\r\nHost: a\r\n", PLAIN),
        (
            "3.2.2",
            "of this transport",
            b"GET https://b/c HTTP/1.1\r\nHost: a\r\n",
            syntax("scheme of the target differs from the transport's"),
        ),
        ("3.2.2", "of a known scheme", b"GET ftp://b/c HTTP/1.1\r\nHost: a\r\n", syntax("request target")),
        (
            "3.2.2",
            "with a valid authority",
            b"GET http://u:p@b/c HTTP/1.1\r\nHost: a\r\n",
            syntax("authority of the target"),
        ),
        ("3.2.3", "authority-form for CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n", PLAIN),
        ("3.2.3", "needs a port", b"CONNECT a HTTP/1.1\r\nHost: a\r\n", syntax("CONNECT target")),
        ("3.2.3", "that exists", b"CONNECT a:0 HTTP/1.1\r\nHost: a\r\n", syntax("CONNECT target")),
        (
            "3.2.3",
            "CONNECT has no other form",
            b"CONNECT / HTTP/1.1\r\nHost: a\r\n",
            syntax("CONNECT target"),
        ),
        (
            "3.2.3",
            "and only CONNECT has this",
            b"GET a:443 HTTP/1.1\r\nHost: a\r\n",
            syntax("request target"),
        ),
        ("3.2.4", "asterisk-form for OPTIONS", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n", PLAIN),
        ("3.2.4", "and only there", b"GET * HTTP/1.1\r\nHost: a\r\n", syntax("request target")),
        ("5", "a field has a colon", b"GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n", syntax("field name")),
        ("5", "and a name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n", syntax("field name")),
        ("5.1", "no space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n", syntax("field name")),
        ("5.1", "space around the value is not part of it", b"GET / HTTP/1.1\r\nHost: \t a \t\r\n", PLAIN),
        ("9110 5.1", "a name is a token", b"GET / HTTP/1.1\r\nHost: a\r\nf@o: b\r\n", syntax("field name")),
        (
            "5.2",
            "no folding",
            b"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\n d\r\n",
            syntax("folded or indented line"),
        ),
        (
            "5.2",
            "nor by a tab",
            b"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\n\td\r\n",
            syntax("folded or indented line"),
        ),
        ("9110 5.5", "no NUL", b"GET / HTTP/1.1\r\nHost: a\r\nb: c\0d\r\n", syntax("field value")),
        (
            "9110 5.5",
            "no control character",
            b"GET / HTTP/1.1\r\nHost: a\r\nb: c\x01d\r\n",
            syntax("field value"),
        ),
        ("9110 5.5", "no DEL", b"GET / HTTP/1.1\r\nHost: a\r\nb: c\x7fd\r\n", syntax("field value")),
        ("9110 5.5", "bytes over 0x7f are opaque", b"GET / HTTP/1.1\r\nHost: a\r\nb: \xff\xfe\r\n", PLAIN),
        (
            "6.1",
            "chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n",
            Accept(Framing::Chunked, true),
        ),
        (
            "6.1",
            "not in HTTP/1.0",
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
            syntax("Transfer-Encoding in HTTP/1.0"),
        ),
        (
            "6.1",
            "no other coding",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n",
            Refused(Malformed::TransferCoding),
        ),
        (
            "6.1",
            "nor what looks like it",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n",
            syntax("list of transfer codings"),
        ),
        (
            "6.1",
            "no list",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n",
            syntax("list of transfer codings"),
        ),
        (
            "6.1",
            "not chunked twice",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n",
            syntax("list of transfer codings"),
        ),
        (
            "6.1",
            "nor in two lines",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            syntax("more than one Transfer-Encoding"),
        ),
        (
            "6.1",
            "not empty",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n",
            syntax("list of transfer codings"),
        ),
        (
            "6.2",
            "content length",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n",
            Accept(Framing::Length(10), true),
        ),
        ("6.2", "zero is none", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n", PLAIN),
        (
            "6.2",
            "not signed",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n",
            syntax("Content-Length"),
        ),
        (
            "6.2",
            "not hexadecimal",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10\r\n",
            syntax("Content-Length"),
        ),
        (
            "6.2",
            "not too large",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n",
            syntax("Content-Length"),
        ),
        ("6.2", "not empty", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n", syntax("Content-Length")),
        (
            "6.3",
            "not both",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            syntax("both Transfer-Encoding and Content-Length"),
        ),
        (
            "6.3",
            "in neither order",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            syntax("both Transfer-Encoding and Content-Length"),
        ),
        (
            "6.3",
            "no second length",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
            syntax("more than one Content-Length"),
        ),
        (
            "6.3",
            "not even the same",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            syntax("more than one Content-Length"),
        ),
        (
            "6.3",
            "no list of lengths",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n",
            syntax("Content-Length"),
        ),
        (
            "9110 9.3.6",
            "CONNECT has no body",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n",
            syntax("CONNECT with a body"),
        ),
        (
            "9.3",
            "close",
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n",
            Accept(Framing::None, false),
        ),
        (
            "9.3",
            "close wins over keep-alive",
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: close\r\n",
            Accept(Framing::None, false),
        ),
        ("9.3", "keep-alive of HTTP/1.0", b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", PLAIN),
    ];
    for (section, rule, message, outcome) in rows {
        let bytes = [message, &b"\r\n"[..]].concat();
        assert_eq!(&request(&bytes).0, outcome, "{section}: {rule}: {}", bytes.escape_ascii());
    }
}

#[test]
fn responses() {
    use Method::{Connect, Get, Head};
    let until_close = Accept(Framing::UntilClose, false);
    let on_bodyless = || syntax("body framing on a status that has no body");
    let rows: &[(&str, &str, Method, &[u8], Outcome)] = &[
        ("4", "a reason phrase is optional", Get, b"HTTP/1.1 200\r\nContent-Length: 0\r\n", PLAIN),
        ("4", "and may be empty", Get, b"HTTP/1.1 200 \r\nContent-Length: 0\r\n", PLAIN),
        ("4", "three digits", Get, b"HTTP/1.1 20 OK\r\n", syntax("status line")),
        ("4", "of a known class", Get, b"HTTP/1.1 099 OK\r\n", syntax("status code")),
        (
            "2.2",
            "no empty line in front",
            Get,
            b"\r\nHTTP/1.1 200 OK\r\n",
            syntax("empty line before the status line"),
        ),
        ("2.2", "LF alone ends no line", Get, b"HTTP/1.1 200 OK\nA: b\r\n", syntax("LF without CR")),
        ("5.2", "no folding", Get, b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n", syntax("folded or indented line")),
        ("5.1", "no space before the colon", Get, b"HTTP/1.1 200 OK\r\na : b\r\n", syntax("field name")),
        ("6.3 1", "HEAD has no body", Head, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", PLAIN),
        ("6.3 1", "nor has 304", Get, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n", PLAIN),
        ("6.3 1", "nor 204", Get, b"HTTP/1.1 204 No Content\r\n", PLAIN),
        ("6.3 1", "nor 1xx", Get, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n", PLAIN),
        (
            "9110 8.6",
            "204 says no length",
            Get,
            b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n",
            on_bodyless(),
        ),
        ("6.1", "1xx has no coding", Get, b"HTTP/1.1 100 C\r\nTransfer-Encoding: chunked\r\n", on_bodyless()),
        ("6.3 2", "CONNECT becomes a tunnel", Connect, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", PLAIN),
        (
            "6.3 2",
            "unless refused",
            Connect,
            b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n",
            Accept(Framing::Length(5), true),
        ),
        (
            "6.3 3",
            "not both",
            Get,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            syntax("both Transfer-Encoding and Content-Length"),
        ),
        (
            "6.3 4",
            "chunked",
            Get,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            Accept(Framing::Chunked, true),
        ),
        (
            "6.3 4",
            "no list of codings",
            Get,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
            syntax("list of transfer codings"),
        ),
        (
            "6.1",
            "no coding in HTTP/1.0",
            Get,
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
            syntax("Transfer-Encoding in HTTP/1.0"),
        ),
        (
            "6.3 5",
            "no two lengths",
            Get,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            syntax("more than one Content-Length"),
        ),
        (
            "6.3 6",
            "content length",
            Get,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            Accept(Framing::Length(5), true),
        ),
        ("6.3 8", "else until the close", Get, b"HTTP/1.1 200 OK\r\n", until_close),
        (
            "9.3",
            "close",
            Get,
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n",
            Accept(Framing::None, false),
        ),
        (
            "9.3",
            "HTTP/1.0 closes",
            Get,
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n",
            Accept(Framing::Length(5), false),
        ),
        (
            "9.3",
            "unless it says otherwise",
            Get,
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n",
            Accept(Framing::Length(5), true),
        ),
    ];
    for (section, rule, method, message, outcome) in rows {
        let bytes = [message, &b"\r\n"[..]].concat();
        assert_eq!(&response(&bytes, *method).0, outcome, "{section}: {rule}: {}", bytes.escape_ascii());
    }
}

#[test]
fn chunks() {
    let refused = |what| Err(Malformed::Syntax(what));
    type Row = (&'static str, &'static str, &'static [u8], Result<&'static [u8], Malformed>);
    let rows: &[Row] = &[
        ("7.1", "sizes are hexadecimal", b"a\r\n0123456789\r\n0\r\n\r\n", Ok(b"0123456789")),
        ("7.1", "of any case", b"A\r\n0123456789\r\n0\r\n\r\n", Ok(b"0123456789")),
        ("7.1", "not marked as such", b"0xa\r\n0123456789\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1", "not signed", b"-1\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1", "not empty", b"\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1", "not indented", b" 1\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1", "not too large", b"10000000000000000\r\na\r\n", refused("chunk size")),
        ("7.1", "not with an underscore", b"1_0\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1", "CRLF after the size", b"1\na\r\n0\r\n\r\n", refused("LF without CR")),
        ("7.1", "CR without LF ends no size", b"1\ra\r\n0\r\n\r\n", refused("CR without LF")),
        ("7.1", "CRLF after the data", b"1\r\nab\r\n0\r\n\r\n", refused("no CRLF after a chunk")),
        ("7.1", "LF alone is not that", b"1\r\na\n0\r\n\r\n", refused("no CRLF after a chunk")),
        ("7.1", "nor CR", b"1\r\na\rb0\r\n\r\n", refused("no CRLF after a chunk")),
        ("7.1.1", "extensions are ignored", b"1;a=b;c\r\na\r\n0;d\r\n\r\n", Ok(b"a")),
        ("7.1.1", "but begin with a semicolon", b"1 a\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1.1", "and hold no control characters", b"1;\0\r\na\r\n0\r\n\r\n", refused("chunk size")),
        ("7.1.2", "trailers", b"1\r\na\r\n0\r\nx: y\r\n\r\n", Ok(b"a")),
        ("7.1.2", "are fields", b"1\r\na\r\n0\r\nx y\r\n\r\n", refused("field name")),
        ("7.1.2", "and not folded", b"0\r\nx: y\r\n z\r\n\r\n", refused("folded or indented line")),
        ("8", "a cut is an error", b"5\r\nab", Err(Malformed::Truncated)),
    ];
    for (section, rule, bytes, outcome) in rows {
        let mut decoder = BodyDecoder::new(Framing::Chunked, Limits::default());
        let (mut buf, mut data) = (BytesMut::from(*bytes), Vec::new());
        let got = loop {
            match decoder.decode(&mut buf) {
                Ok(Decoded::Data(piece)) => data.extend_from_slice(&piece),
                Ok(Decoded::Trailers(_)) => {}
                Ok(Decoded::End) => break Ok(&data[..]),
                Ok(Decoded::More) => break Err(Malformed::Truncated),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(got, *outcome, "{section}: {rule}: {}", bytes.escape_ascii());
    }
}

#[test]
fn targets_become_scheme_authority_and_path() {
    for (line, authority, path) in [
        ("GET /a?b HTTP/1.1\r\nHost: h:8", "h:8", "/a?b"),
        ("GET http://b HTTP/1.1\r\nHost: h", "b", "/"),
        ("GET HTTP://b:80?q HTTP/1.1\r\nHost: h", "b:80", "/?q"),
        ("GET http://b/c/d?e HTTP/1.1\r\nHost: h", "b", "/c/d?e"),
        ("OPTIONS http://b HTTP/1.1\r\nHost: h", "b", "*"),
        ("OPTIONS * HTTP/1.1\r\nHost: h", "h", "*"),
        ("CONNECT [::1]:443 HTTP/1.1\r\nHost: h", "[::1]:443", ""),
    ] {
        let (outcome, head) = request(format!("{line}\r\n\r\n").as_bytes());
        assert_eq!(outcome, PLAIN, "{line}");
        assert_eq!((head.authority(), head.path()), (authority.as_bytes(), path.as_bytes()), "{line}");
        assert!(!head.fields.contains("host"));
        assert_eq!((head.scheme, head.version), (Scheme::Http, Version::Http11));
    }
    let secure = RequestRules { secure: true, ..RequestRules::default() };
    let (outcome, head) = request_with(b"GET https://b/ HTTP/1.1\r\nHost: a\r\n\r\n", &secure);
    assert_eq!((outcome, head.scheme), (PLAIN, Scheme::Https));
    let refusing = RequestRules { refuse_absolute: true, ..RequestRules::default() };
    let (outcome, _) = request_with(b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", &refusing);
    assert_eq!(outcome, syntax("absolute-form target"));
}

#[test]
fn authorities() {
    for (text, valid) in [
        ("a", true),
        ("a.b-c_d~e:80", true),
        ("a:", true),
        ("[::1]", true),
        ("[fe80::1%25eth0]:80", false),
        ("[::1]:8080", true),
        ("127.0.0.1:80", true),
        ("a%41", true),
        ("", false),
        (":80", false),
        ("a:b", false),
        ("a:80:90", false),
        ("[::1", false),
        ("[]", false),
        ("[::1]x", false),
        ("u@a", false),
        ("a/b", false),
        ("a?b", false),
        ("a#b", false),
        ("a\\b", false),
        ("a b", false),
        ("ä", false),
    ] {
        assert_eq!(parse::is_authority(text.as_bytes()), valid, "{text}");
    }
}
