//! The border to the `h2` crate: its messages from and to our heads (RFC 9113 8).
//!
//! What changes on the way: cookie crumbs are joined into one line; `Host` gives way to `:authority`; fields that belong
//! to a connection do not exist in HTTP/2 (`h2` refuses those that come in, and none is written); names are lower-case; an extended
//! CONNECT (RFC 8441) is the upgrade that it would be over HTTP/1, so that everything between knows one kind of upgrade.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::fields::{Fields, is_token};
use super::h1::hop_by_hop;
use super::h1::parse::is_authority;
use super::head::{Known, Method, RequestHead, ResponseHead, Scheme, Version};

/// Why a message can't cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Uncrossable {
    /// A part of the request line.
    #[error("invalid {0}")]
    Part(&'static str),
    /// More lines than allowed.
    #[error("too many header fields")]
    TooManyFields,
}

/// Fills `head` with a request that `h2` received.
pub fn request_from_h2(
    parts: http::request::Parts,
    head: &mut RequestHead,
    max_headers: usize,
) -> Result<(), Uncrossable> {
    head.clear();
    head.version = Version::Http2;
    if parts.headers.len() > max_headers {
        return Err(Uncrossable::TooManyFields);
    }
    if !head.set_method(parts.method.as_str().as_bytes()) {
        return Err(Uncrossable::Part("method"));
    }
    head.scheme = match parts.uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") | None => Scheme::Http,
        Some(_) => return Err(Uncrossable::Part("scheme")),
    };
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    head.set_protocol(protocol.map(|protocol| protocol.as_str().as_bytes()));
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let authority = authority.or_else(|| parts.headers.get(http::header::HOST).map(HeaderValue::as_bytes));
    if !authority.is_none_or(is_authority) {
        return Err(Uncrossable::Part("authority"));
    }
    head.set_authority(authority.unwrap_or_default());
    if head.method() != Method::Connect || head.protocol().is_some() {
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let asterisk = head.method() == Method::Options && path == "*";
        if !path.starts_with('/') && !asterisk {
            return Err(Uncrossable::Part("path"));
        }
        head.set_path(path.as_bytes());
    }
    fields_from_h2(&parts.headers, &mut head.fields);
    head.fields.remove(Known::Host);
    head.fields.remove(Known::Upgrade);
    hop_by_hop::strip_request(head);
    Ok(())
}

/// Reads an extended CONNECT as the upgrade that it would be over HTTP/1.
pub fn upgrade_from_h2(head: &mut RequestHead) -> Result<(), Uncrossable> {
    let Some(protocol) = head.protocol().map(Box::<[u8]>::from) else { return Ok(()) };
    if head.method() != Method::Connect || !protocol.split(|byte| *byte == b'/').all(is_token) {
        return Err(Uncrossable::Part("protocol"));
    }
    head.set_method(b"GET");
    head.set_protocol(None);
    head.fields.append(Known::Connection, b"Upgrade");
    head.fields.append(Known::Upgrade, &protocol);
    Ok(())
}

/// The request that `h2` is to send.
pub fn request_to_h2(head: &RequestHead) -> Result<http::Request<()>, Uncrossable> {
    let mut request = http::Request::new(());
    let upgrade = head.upgrade();
    let method = if upgrade.is_some() { b"CONNECT" } else { head.method_str().as_bytes() };
    *request.method_mut() = http::Method::from_bytes(method).map_err(|_| Uncrossable::Part("method"))?;
    let authority = Bytes::copy_from_slice(head.authority());
    let mut uri = http::uri::Parts::default();
    uri.authority =
        Some(Authority::from_maybe_shared(authority).map_err(|_| Uncrossable::Part("authority"))?);
    let plain_connect = head.method() == Method::Connect && head.protocol().is_none();
    if !plain_connect {
        let path = Bytes::copy_from_slice(head.path());
        uri.path_and_query =
            Some(PathAndQuery::from_maybe_shared(path).map_err(|_| Uncrossable::Part("path"))?);
        uri.scheme = Some(match head.scheme {
            Scheme::Http => UriScheme::HTTP,
            Scheme::Https => UriScheme::HTTPS,
        });
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Uncrossable::Part("target"))?;
    if let Some(protocol) = upgrade.or(head.protocol()) {
        let protocol = std::str::from_utf8(protocol).map_err(|_| Uncrossable::Part("protocol"))?;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = fields_to_h2(&head.fields);
    Ok(request)
}

/// Fills `head` with a response that `h2` received.
pub fn response_from_h2(parts: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.version = Version::Http2;
    head.status = parts.status.as_u16();
    fields_from_h2(&parts.headers, &mut head.fields);
    hop_by_hop::strip_response(head);
}

/// The response that `h2` is to send.
pub fn response_to_h2(head: &ResponseHead) -> Result<http::Response<()>, Uncrossable> {
    let mut response = http::Response::new(());
    *response.status_mut() =
        http::StatusCode::from_u16(head.status).map_err(|_| Uncrossable::Part("status"))?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = fields_to_h2(&head.fields);
    Ok(response)
}

/// Fills `fields`, with cookie crumbs joined (RFC 9113 8.2.3).
pub fn fields_from_h2(headers: &HeaderMap, fields: &mut Fields) {
    fields.clear();
    for (name, value) in headers {
        if *name == http::header::COOKIE && fields.contains(Known::Cookie) {
            continue;
        }
        if *name == http::header::COOKIE {
            let mut crumbs = headers.get_all(name).iter();
            if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
                let mut joined = first.as_bytes().to_vec();
                for crumb in std::iter::once(second).chain(crumbs) {
                    joined.extend_from_slice(b"; ");
                    joined.extend_from_slice(crumb.as_bytes());
                }
                fields.append(Known::Cookie, &joined);
                continue;
            }
        }
        fields.append(name.as_str(), value.as_bytes());
    }
}

/// `fields` as `h2` wants them. All values share one allocation.
pub fn fields_to_h2(fields: &Fields) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    let text = Bytes::copy_from_slice(fields.text());
    for (field, range) in fields.iter_ranges() {
        if field.known.is_some_and(|known| hop_by_hop::is_connection_specific(known) || known == Known::Host)
        {
            continue;
        }
        let name = match field.known {
            Some(known) => Some(known.as_h2().clone()),
            None => HeaderName::from_bytes(field.name).ok(),
        };
        // Both were valid when they came in; a value that isn't can only be left out.
        if let (Some(name), Ok(mut value)) = (name, HeaderValue::from_maybe_shared(text.slice(range))) {
            value.set_sensitive(field.known.is_some_and(never_repeats));
            headers.append(name, value);
        }
    }
    headers
}

/// True for fields whose values are new in each request. `h2` writes sensitive ones as literals (RFC 7541 6.2.3); in the
/// compression table they would push out what repeats, and each look-up would compare with all that are still in it.
fn never_repeats(known: Known) -> bool {
    use Known::{Traceparent, XB3ParentSpanId, XB3SpanId, XB3TraceId, XOtSpanContext, XRequestId};
    matches!(known, XRequestId | Traceparent | XB3TraceId | XB3SpanId | XB3ParentSpanId | XOtSpanContext)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(request: http::Request<()>) -> Result<RequestHead, Uncrossable> {
        let mut head = RequestHead::new();
        request_from_h2(request.into_parts().0, &mut head, 100).map(|()| head)
    }

    #[test]
    fn requests_cross_both_ways() {
        let request = http::Request::builder()
            .method("POST")
            .uri("http://a.example:80/x?y")
            .header("cookie", "a=1")
            .header("x-foo", "1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .header("host", "other")
            .header("x-foo", "2")
            .body(())
            .unwrap();
        let head = received(request).unwrap();
        assert_eq!(
            (head.method_str(), head.authority(), head.path()),
            ("POST", &b"a.example:80"[..], &b"/x?y"[..])
        );
        assert_eq!(head.fields.get("cookie"), Some(&b"a=1; b=2"[..]));
        assert_eq!(head.fields.get_all("x-foo").collect::<Vec<_>>(), [b"1", b"2"]);
        assert!(!head.fields.contains("host"));
        let back = request_to_h2(&head).unwrap();
        assert_eq!(back.uri(), "http://a.example:80/x?y");
        assert_eq!(back.headers().get("te").unwrap(), "trailers");
        assert_eq!(back.headers().get_all("x-foo").iter().count(), 2);
        assert_eq!(received(back).unwrap().fields, head.fields);
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_and_back() {
        let mut request =
            http::Request::builder().method("CONNECT").uri("https://a/chat?x").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let mut head = received(request).unwrap();
        assert_eq!(head.upgrade(), None);
        upgrade_from_h2(&mut head).unwrap();
        assert_eq!(
            (head.method_str(), head.path(), head.upgrade()),
            ("GET", &b"/chat?x"[..], Some(&b"websocket"[..]))
        );
        let back = request_to_h2(&head).unwrap();
        assert_eq!(
            (back.method().as_str(), back.uri().to_string().as_str()),
            ("CONNECT", "https://a/chat?x")
        );
        assert_eq!(back.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        assert!(back.headers().is_empty(), "{:?}", back.headers());

        for protocol in ["", "a//b", "x:y", "a\"b"] {
            let mut head = RequestHead::new();
            head.set_method(b"CONNECT");
            head.set_protocol(Some(protocol.as_bytes()));
            assert_eq!(upgrade_from_h2(&mut head), Err(Uncrossable::Part("protocol")), "{protocol:?}");
        }
    }

    #[test]
    fn host_stands_in_for_a_missing_authority() {
        let request = http::Request::builder().uri("/x").header("host", "h").body(()).unwrap();
        assert_eq!(received(request).unwrap().authority(), b"h");
        let request = http::Request::builder().uri("/x").header("host", "u@h").body(()).unwrap();
        assert_eq!(received(request).unwrap_err(), Uncrossable::Part("authority"));
    }

    #[test]
    fn connection_fields_do_not_cross() {
        let mut head = ResponseHead::new(200);
        for name in ["connection", "upgrade", "keep-alive", "transfer-encoding", "X-Kept"] {
            head.fields.append(name, b"x");
        }
        let response = response_to_h2(&head).unwrap();
        assert_eq!(response.headers().keys().collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn what_never_repeats_is_not_indexed() {
        let mut fields = Fields::new();
        fields.append("x-request-id", b"1");
        fields.append("user-agent", b"1");
        let headers = fields_to_h2(&fields);
        assert!(headers["x-request-id"].is_sensitive() && !headers["user-agent"].is_sensitive());
    }

    #[test]
    fn too_many_fields_are_refused() {
        let mut request = http::Request::builder().uri("http://a/");
        for i in 0..101 {
            request = request.header(format!("x-{i}"), "1");
        }
        assert_eq!(received(request.body(()).unwrap()).unwrap_err(), Uncrossable::TooManyFields);
    }
}
