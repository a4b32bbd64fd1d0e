//! What belongs to one connection and is never forwarded (RFC 9110 7.6.1).
//!
//! This is the only place that takes such fields out. Parsers of both HTTP versions call it for each head on both sides,
//! so nothing behind them sees these fields, and encoders write their own. Two things survive, because
//! they are meant for the other end: a valid request to upgrade (`connection: upgrade` with `upgrade`, both kept until
//! the exchange allows or drops it), and `te: trailers`.

use super::super::fields::{Fields, tokens};
use super::super::head::{Known, RequestHead, ResponseHead, Version};

/// Takes hop-by-hop fields out of a request as it was received.
pub fn strip_request(head: &mut RequestHead) {
    let upgrade = head.upgrade().is_some();
    strip(&mut head.fields, upgrade);
}

/// Takes hop-by-hop fields out of a response as it was received. Only a 101 upgrades.
pub fn strip_response(head: &mut ResponseHead) {
    let upgrade =
        head.status == 101 && head.version == Version::Http11 && head.fields.contains(Known::Upgrade);
    strip(&mut head.fields, upgrade);
}

/// Takes out what has no meaning in trailers or could change the message they belong to (RFC 9110 6.5.1).
pub fn strip_trailers(fields: &mut Fields) {
    fields.retain(|field| {
        !field.known.is_some_and(|known| {
            is_connection_specific(known)
                || matches!(
                    known,
                    Known::ContentLength
                        | Known::Host
                        | Known::Te
                        | Known::Trailer
                        | Known::Expect
                        | Known::Authorization
                        | Known::ProxyAuthorization
                        | Known::ContentType
                        | Known::ContentEncoding
                        | Known::SetCookie
                )
        })
    });
}

/// Takes out a request to upgrade that is not going to be honoured.
pub fn drop_upgrade(fields: &mut Fields) {
    fields.remove(Known::Connection);
    fields.remove(Known::Upgrade);
    fields.remove(Known::Http2Settings);
}

/// True for fields that HTTP/2 forbids (RFC 9113 8.2.2).
pub fn is_connection_specific(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade
            | Known::Http2Settings
    )
}

fn strip(fields: &mut Fields, upgrade: bool) {
    // Most messages carry none of these: one look at the known names decides.
    let some = |field: super::super::fields::Field<'_>| {
        field.known.is_some_and(|known| is_connection_specific(known) || known == Known::Te)
    };
    if !fields.iter().any(some) {
        return;
    }
    strip_named_by_connection(fields);
    let trailers = fields.has_token(Known::Te, b"trailers");
    fields.retain(|field| match field.known {
        Some(Known::Upgrade) => upgrade,
        Some(Known::Te) => false,
        Some(known) => !is_connection_specific(known),
        None => true,
    });
    if trailers {
        fields.append(Known::Te, b"trailers");
    }
    if upgrade {
        fields.append(Known::Connection, b"Upgrade");
    }
}

/// Removes the fields that `connection` names, except those that no intermediary may be talked out of.
fn strip_named_by_connection(fields: &mut Fields) {
    let boring = |token: &[u8]| {
        [&b"close"[..], b"keep-alive", b"upgrade", b"te"]
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known))
    };
    // Almost always all tokens are boring; then nothing is copied.
    let named: Vec<Box<[u8]>> = fields
        .get_all(Known::Connection)
        .flat_map(tokens)
        .filter(|token| !boring(token) && !is_protected(token))
        .map(Box::from)
        .collect();
    if !named.is_empty() {
        fields.retain(|field| !named.iter().any(|name| field.name.eq_ignore_ascii_case(name)));
    }
}

/// A client must not make us drop what identifies it or frames its message (Envoy refuses the same ones).
fn is_protected(token: &[u8]) -> bool {
    matches!(
        Known::find(token),
        Some(
            Known::Host
                | Known::ContentLength
                | Known::TransferEncoding
                | Known::XForwardedFor
                | Known::XForwardedHost
                | Known::XForwardedProto
                | Known::XForwardedClientCert
                | Known::XEnvoyPeerMetadata
                | Known::XEnvoyPeerMetadataId
                | Known::Authorization
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(version: Version, lines: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut head = RequestHead::new();
        head.version = version;
        for (name, value) in lines {
            head.fields.append(*name, value.as_bytes());
        }
        strip_request(&mut head);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        head.fields.iter().map(|field| (text(field.name), text(field.value))).collect()
    }

    fn lines(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn requests_lose_what_belongs_to_the_connection() {
        for (received, kept) in [
            (&[("a", "1"), ("connection", "keep-alive"), ("keep-alive", "5")][..], &[("a", "1")][..]),
            (&[("proxy-connection", "x"), ("transfer-encoding", "chunked"), ("a", "1")], &[("a", "1")]),
            (&[("connection", "x-private, close"), ("X-Private", "1"), ("b", "2")], &[("b", "2")]),
            (&[("te", "gzip, trailers"), ("a", "1")], &[("a", "1"), ("te", "trailers")]),
            (&[("te", "gzip")], &[]),
            (&[("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")], &[]),
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x")],
                &[("upgrade", "websocket"), ("sec-websocket-key", "x"), ("connection", "Upgrade")],
            ),
            (
                &[("connection", "x-forwarded-for, authorization"), ("x-forwarded-for", "1.2.3.4")],
                &[("x-forwarded-for", "1.2.3.4")],
            ),
        ] {
            assert_eq!(stripped(Version::Http11, received), lines(kept), "{received:?}");
        }
    }

    #[test]
    fn only_http_11_upgrades() {
        let received = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert_eq!(stripped(Version::Http10, &received), lines(&[]));
        let mut head = ResponseHead::new(200);
        head.fields.append("connection", b"upgrade");
        head.fields.append("upgrade", b"websocket");
        let mut switching = ResponseHead { status: 101, ..head.clone() };
        strip_response(&mut head);
        strip_response(&mut switching);
        assert!(head.fields.is_empty());
        assert_eq!(switching.fields.get(Known::Upgrade), Some(&b"websocket"[..]));
    }

    #[test]
    fn trailers_cannot_change_their_message() {
        let mut fields = Fields::new();
        for name in ["x-sum", "content-length", "Transfer-Encoding", "host", "grpc-status", "connection"] {
            fields.append(name, b"0");
        }
        strip_trailers(&mut fields);
        let names: Vec<_> = fields.iter().map(|field| field.name).collect();
        assert_eq!(names, [&b"x-sum"[..], b"grpc-status"]);
    }
}
