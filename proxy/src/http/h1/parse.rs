//! Reads one complete head into a [`RequestHead`] or [`ResponseHead`] and decides how its body is framed.
//!
//! The block must be what [`HeadScan`](super::HeadScan) found: its line structure is known to be sound. The text of the
//! fields is copied once into the head's own buffer and then only referred to by ranges.

use std::mem::MaybeUninit;

use httparse::Header;

use super::{Framing, MOST_HEADERS, Malformed, hop_by_hop};
use crate::http::fields::{Fields, Span, alphanumerics_and, tokens};
use crate::http::head::{Known, Method, RequestHead, ResponseHead, Scheme, Version};

/// What was decided about a message beside its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// How the body is framed.
    pub framing: Framing,
    /// The peer keeps the connection open after this message (RFC 9112 9.3).
    pub persistent: bool,
}

/// What the connection says about the requests on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestRules {
    /// The transport is TLS; an absolute-form target must agree.
    pub secure: bool,
    /// Absolute-form targets are refused.
    pub refuse_absolute: bool,
}

/// Parses a request head. On an error `head` holds whatever was read.
pub fn parse_request(
    block: &[u8],
    head: &mut RequestHead,
    rules: &RequestRules,
) -> Result<Received, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    complete(httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut parsed,
        block,
        &mut headers,
    ))?;
    head.clear();
    head.version = version(parsed.version);
    if !head.set_method(parsed.method.unwrap_or_default().as_bytes()) {
        return Err(Malformed::Syntax("method"));
    }
    let facts = Facts::collect(block, parsed.headers, &mut head.fields, Side::Request)?;
    if let Some(host) = facts.host {
        head.set_host_spelling(host.name.as_bytes());
        head.set_authority(host.value);
        if !host.value.is_empty() && !is_authority(host.value) {
            return Err(Malformed::Syntax("Host"));
        }
    } else if head.version == Version::Http11 {
        return Err(Malformed::NoHost);
    }
    set_target(head, parsed.path.unwrap_or_default().as_bytes(), rules)?;
    let framing = facts.request_framing(head.version, head.method())?;
    hop_by_hop::strip_request(head);
    Ok(Received { framing, persistent: facts.persistent(head.version) })
}

/// Parses the head of a response to a request with `method`. On an error `head` holds whatever was read.
pub fn parse_response(block: &[u8], head: &mut ResponseHead, method: Method) -> Result<Received, Malformed> {
    if block.starts_with(b"\r\n") {
        return Err(Malformed::Syntax("empty line before the status line"));
    }
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    complete(httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        block,
        &mut headers,
    ))?;
    head.clear();
    head.version = version(parsed.version);
    head.status = parsed.code.unwrap_or_default();
    if head.status < 100 {
        return Err(Malformed::Syntax("status code"));
    }
    let facts = Facts::collect(block, parsed.headers, &mut head.fields, Side::Response)?;
    let framing = facts.response_framing(head, method)?;
    let persistent = facts.persistent(head.version) && framing != Framing::UntilClose;
    hop_by_hop::strip_response(head);
    Ok(Received { framing, persistent })
}

/// Parses a trailer section that ends in an empty line.
pub(super) fn parse_trailers(block: &[u8]) -> Result<Fields, Malformed> {
    let mut fields = Fields::new();
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    match httparse::parse_headers(block, &mut headers) {
        Ok(httparse::Status::Complete((_, headers))) => adopt(block, headers, &mut fields, |_, _| true),
        Ok(httparse::Status::Partial) => return Err(Malformed::Syntax("trailer section")),
        Err(error) => return Err(refused(error)),
    }
    Ok(fields)
}

fn complete(outcome: httparse::Result<usize>) -> Result<(), Malformed> {
    match outcome {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(Malformed::Syntax("incomplete head")),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: httparse::Error) -> Malformed {
    Malformed::Syntax(match error {
        httparse::Error::HeaderName => "field name",
        httparse::Error::HeaderValue => "field value",
        httparse::Error::NewLine => "line end",
        httparse::Error::Status => "status line",
        httparse::Error::Token => "request line",
        httparse::Error::TooManyHeaders => return Malformed::TooManyFields,
        httparse::Error::Version => "HTTP version",
    })
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::Http10 } else { Version::Http11 }
}

/// Copies the field section into `fields` and refers to it, leaving out the lines for which `keep` is false.
fn adopt<'b>(
    block: &'b [u8],
    headers: &[Header<'b>],
    fields: &mut Fields,
    mut keep: impl FnMut(Option<Known>, &Header<'b>) -> bool,
) {
    let Some(first) = headers.first() else { return };
    let offset = |part: &[u8]| part.as_ptr().addr() - block.as_ptr().addr();
    let base = offset(first.name.as_bytes());
    fields.adopt_text(block.get(base..).unwrap_or_default());
    for header in headers {
        let known = Known::find(header.name.as_bytes());
        if keep(known, header) {
            let name = Span::new(offset(header.name.as_bytes()) - base, header.name.len());
            // An empty value may point anywhere.
            let value = if header.value.is_empty() {
                Span::default()
            } else {
                Span::new(offset(header.value) - base, header.value.len())
            };
            fields.adopt_field(known, name, value);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// What the framing fields of a message say.
#[derive(Default)]
struct Facts<'b> {
    host: Option<Header<'b>>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl<'b> Facts<'b> {
    fn collect(
        block: &'b [u8],
        headers: &[Header<'b>],
        fields: &mut Fields,
        side: Side,
    ) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        let mut verdict = Ok(());
        adopt(block, headers, fields, |known, header| {
            let Some(known) = known else { return true };
            if let Err(error) = facts.note(known, header, side) {
                verdict = Err(error);
            }
            known != Known::Host || side == Side::Response
        });
        verdict?;
        if facts.chunked && facts.content_length.is_some() {
            return Err(Malformed::Syntax("both Transfer-Encoding and Content-Length"));
        }
        Ok(facts)
    }

    fn note(&mut self, known: Known, header: &Header<'b>, side: Side) -> Result<(), Malformed> {
        match known {
            Known::Host if side == Side::Request && self.host.replace(*header).is_some() => {
                Err(Malformed::Syntax("more than one Host"))
            }
            Known::ContentLength => {
                let length = content_length(header.value)?;
                match self.content_length.replace(length) {
                    Some(_) => Err(Malformed::Syntax("more than one Content-Length")),
                    None => Ok(()),
                }
            }
            Known::TransferEncoding if self.chunked => {
                Err(Malformed::Syntax("more than one Transfer-Encoding"))
            }
            Known::TransferEncoding => {
                self.chunked = header.value.eq_ignore_ascii_case(b"chunked");
                if self.chunked { Ok(()) } else { Err(transfer_coding(header.value)) }
            }
            Known::Connection => {
                for token in tokens(header.value) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn persistent(&self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
    }

    fn request_framing(&self, version: Version, method: Method) -> Result<Framing, Malformed> {
        self.check_version(version)?;
        let framing = match (self.chunked, self.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(0) | None) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        if method == Method::Connect && framing != Framing::None {
            return Err(Malformed::Syntax("CONNECT with a body"));
        }
        Ok(framing)
    }

    fn response_framing(&self, head: &mut ResponseHead, method: Method) -> Result<Framing, Malformed> {
        self.check_version(head.version)?;
        if head.is_informational() || head.status == 204 {
            if self.chunked || self.content_length.is_some_and(|length| length != 0) {
                return Err(Malformed::Syntax("body framing on a status that has no body"));
            }
            head.fields.remove(Known::ContentLength);
            return Ok(Framing::None);
        }
        let tunnel = method == Method::Connect && (200..300).contains(&head.status);
        if method == Method::Head || head.status == 304 || tunnel {
            return Ok(Framing::None);
        }
        Ok(match (self.chunked, self.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        })
    }

    /// RFC 9112 6.1: a transfer coding in an HTTP/1.0 message is faulty framing.
    fn check_version(&self, version: Version) -> Result<(), Malformed> {
        if self.chunked && version == Version::Http10 {
            return Err(Malformed::Syntax("Transfer-Encoding in HTTP/1.0"));
        }
        Ok(())
    }
}

fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    let digits = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    length.ok_or(Malformed::Syntax("Content-Length"))
}

fn transfer_coding(value: &[u8]) -> Malformed {
    match is_list_or_has_chunked(value) {
        true => Malformed::Syntax("list of transfer codings"),
        false => Malformed::TransferCoding,
    }
}

fn is_list_or_has_chunked(value: &[u8]) -> bool {
    let mut codings = tokens(value);
    let first = codings.next();
    codings.next().is_some()
        || first.is_none_or(|coding| coding.to_ascii_lowercase().windows(7).any(|part| part == b"chunked"))
}

/// Maps the request target to scheme, authority and path (RFC 9112 3.2).
fn set_target(head: &mut RequestHead, target: &[u8], rules: &RequestRules) -> Result<(), Malformed> {
    head.scheme = if rules.secure { Scheme::Https } else { Scheme::Http };
    match (head.method(), target) {
        (Method::Connect, _) => {
            if !is_host_and_port(target) {
                return Err(Malformed::Syntax("CONNECT target"));
            }
            head.set_authority(target);
            Ok(())
        }
        (_, [b'/', ..]) => {
            head.set_path(target);
            Ok(())
        }
        (Method::Options, b"*") => {
            head.set_path(target);
            Ok(())
        }
        _ if rules.refuse_absolute => Err(Malformed::Syntax("absolute-form target")),
        _ => set_absolute(head, target),
    }
}

/// RFC 9112 3.2.2: the target wins over `Host`.
fn set_absolute(head: &mut RequestHead, target: &[u8]) -> Result<(), Malformed> {
    let (scheme, rest) = if let Some(rest) = strip_prefix(target, b"http://") {
        (Scheme::Http, rest)
    } else if let Some(rest) = strip_prefix(target, b"https://") {
        (Scheme::Https, rest)
    } else {
        return Err(Malformed::Syntax("request target"));
    };
    if scheme != head.scheme {
        return Err(Malformed::Syntax("scheme of the target differs from the transport's"));
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_authority(authority) {
        return Err(Malformed::Syntax("authority of the target"));
    }
    head.set_authority(authority);
    match path {
        [] if head.method() == Method::Options => head.set_path(b"*"),
        [b'/', ..] => head.set_path(path),
        _ => {
            let mut rooted = Vec::with_capacity(path.len() + 1);
            rooted.push(b'/');
            rooted.extend_from_slice(path);
            head.set_path(&rooted);
        }
    }
    Ok(())
}

fn strip_prefix<'t>(target: &'t [u8], prefix: &[u8]) -> Option<&'t [u8]> {
    let (start, rest) = target.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// True for what may stand in `Host` or `:authority`: the characters of host and port (RFC 3986 3.2), without user
/// information (RFC 9110 4.2.4), and a port of digits.
pub fn is_authority(authority: &[u8]) -> bool {
    let host = match authority {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end)
                if end > 0 && rest[..end].iter().all(|b| b.is_ascii_hexdigit() || b":.%".contains(b)) =>
            {
                return matches!(&rest[end + 1..], [] | [b':', ..])
                    && rest[end + 1..].iter().skip(1).all(u8::is_ascii_digit);
            }
            _ => return false,
        },
        other => other,
    };
    let (name, port) = match host.iter().position(|byte| *byte == b':') {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, &[][..]),
    };
    let allowed = |byte: &u8| HOST[usize::from(*byte)];
    !name.is_empty() && name.iter().all(allowed) && port.iter().all(u8::is_ascii_digit)
}

/// Bytes of a host that is no address in brackets (RFC 3986 3.2.2).
static HOST: [bool; 256] = alphanumerics_and(b"-._~!$&'()*+,;=%");

/// Authority-form (RFC 9112 3.2.3): host and a port, both needed.
fn is_host_and_port(target: &[u8]) -> bool {
    let port = target.iter().rposition(|byte| *byte == b':').map(|colon| &target[colon + 1..]);
    let valid = |port: &[u8]| {
        std::str::from_utf8(port).ok().and_then(|text| text.parse::<u16>().ok()).is_some_and(|port| port > 0)
    };
    is_authority(target) && port.is_some_and(valid)
}
