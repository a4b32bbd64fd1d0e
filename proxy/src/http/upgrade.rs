//! Requests that want to become something else: `Upgrade` (WebSocket) and CONNECT.
//!
//! Bytes go through as a tunnel only after the upstream has said 101: a client may hope for it and send early, but what it sent
//! waits until then. CONNECT is for explicit-proxy listeners alone, where it names a new original destination; the connection
//! then goes back to the listener, which detects what is in it.
//!
//! The two versions ask in different ways, `Upgrade` over HTTP/1 and an extended CONNECT over HTTP/2 (RFC 8441). Both are the former
//! here; `http::h2` translates at the border, so that any client can reach any upstream.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::config::listener::HttpManager;
use crate::config::route::Forward;
use crate::error::{Kind, Progress, ProxyError, Side};

use super::h1::hop_by_hop::drop_upgrade;
use super::head::{Known, Method, RequestHead};

/// What a request wants to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: an ordinary request.
    None,
    /// A tunnel to the upstream, after its 101.
    Upgrade,
    /// A connection to the authority.
    Connect,
    /// A connection that it can't have here: refused when its route is known, as Envoy does.
    Refused,
}

/// Reads a request's wish before it is routed. Requests for HTTP/2 are served as what they are, as Envoy does.
pub fn wish(manager: &HttpManager, head: &mut RequestHead) -> Wish {
    if head.method() == Method::Connect {
        let plain = head.protocol().is_none();
        return if manager.explicit_proxy && plain { Wish::Connect } else { Wish::Refused };
    }
    match head.upgrade() {
        None => Wish::None,
        Some(protocol) if protocol.eq_ignore_ascii_case(b"h2c") => {
            drop_upgrade(&mut head.fields);
            Wish::None
        }
        Some(_) => Wish::Upgrade,
    }
}

/// Whether the route (before it, the connection manager) grants a wish.
pub fn allow(
    manager: &HttpManager,
    forward: &Forward,
    head: &RequestHead,
    wish: Wish,
) -> Result<(), ProxyError> {
    match wish {
        Wish::None => return Ok(()),
        Wish::Upgrade => {}
        Wish::Connect | Wish::Refused => return Err(refused("CONNECT is for explicit-proxy listeners")),
    }
    let wanted = head.fields.get(Known::Upgrade).unwrap_or_default();
    let named = |name: &str| name.as_bytes().eq_ignore_ascii_case(wanted);
    let by_route = forward.upgrades.iter().find(|(name, _)| named(name)).map(|(_, enabled)| *enabled);
    match by_route.unwrap_or_else(|| manager.upgrades.iter().any(|name| named(name))) {
        true => Ok(()),
        false => Err(refused(&format!("upgrade to {} is not enabled", String::from_utf8_lossy(wanted)))),
    }
}

/// Over HTTP/1 a WebSocket needs a key, which clients don't send over HTTP/2 (RFC 8441 5).
pub fn add_key(head: &mut RequestHead, mut random: impl FnMut() -> u64) {
    const KEY: &str = "sec-websocket-key";
    let websocket = head.upgrade().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
    if websocket && !head.fields.contains(KEY) {
        let key = [random().to_ne_bytes(), random().to_ne_bytes()].concat();
        head.fields.append(KEY, BASE64.encode(key).as_bytes());
    }
}

fn refused(detail: &str) -> ProxyError {
    ProxyError::new(Kind::UpgradeRefused, Side::Downstream, Progress::NothingSent, detail.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_support::{forward, manager};

    fn request(method: &str, upgrade: Option<&str>) -> RequestHead {
        let mut head = RequestHead::new();
        head.set_method(method.as_bytes());
        if let Some(upgrade) = upgrade {
            head.fields.append(Known::Connection, b"upgrade");
            head.fields.append(Known::Upgrade, upgrade.as_bytes());
        }
        head
    }

    #[test]
    fn wishes() {
        let config = manager();
        assert_eq!(wish(&config, &mut request("GET", None)), Wish::None);
        assert_eq!(wish(&config, &mut request("GET", Some("WebSocket"))), Wish::Upgrade);
        let mut h2c = request("GET", Some("h2c"));
        assert_eq!(wish(&config, &mut h2c), Wish::None);
        assert!(h2c.fields.is_empty());
        assert_eq!(wish(&config, &mut request("CONNECT", None)), Wish::Refused);
        let proxy = HttpManager { explicit_proxy: true, ..manager() };
        assert_eq!(wish(&proxy, &mut request("CONNECT", None)), Wish::Connect);
        let mut extended = request("CONNECT", None);
        extended.set_protocol(Some(b"websocket"));
        assert_eq!(wish(&proxy, &mut extended), Wish::Refused);
    }

    #[test]
    fn a_websocket_gets_a_key_where_it_has_none() {
        let mut head = request("GET", Some("WebSocket"));
        add_key(&mut head, || 0);
        assert_eq!(head.fields.get("sec-websocket-key"), Some(&b"AAAAAAAAAAAAAAAAAAAAAA=="[..]));
        add_key(&mut head, || 1);
        assert_eq!(head.fields.get_all("sec-websocket-key").count(), 1);
        let mut other = request("GET", Some("other"));
        add_key(&mut other, || 0);
        assert!(!other.fields.contains("sec-websocket-key"));
    }

    #[test]
    fn routes_overrule_the_connection_manager() {
        let websocket = request("GET", Some("WebSocket"));
        let with = |upgrades: &[&str]| HttpManager {
            upgrades: upgrades.iter().map(|name| (*name).into()).collect(),
            ..manager()
        };
        let route = |enabled| Forward { upgrades: vec![("websocket".into(), enabled)], ..forward() };
        assert!(allow(&with(&["websocket"]), &forward(), &websocket, Wish::Upgrade).is_ok());
        assert!(allow(&with(&["other"]), &forward(), &websocket, Wish::Upgrade).is_err());
        assert!(allow(&with(&["websocket"]), &route(false), &websocket, Wish::Upgrade).is_err());
        assert!(allow(&with(&[]), &route(true), &websocket, Wish::Upgrade).is_ok());
        let error = allow(&with(&[]), &forward(), &websocket, Wish::Upgrade).unwrap_err();
        assert_eq!(
            (error.kind, &*error.detail),
            (Kind::UpgradeRefused, "upgrade to WebSocket is not enabled")
        );
        assert!(allow(&with(&[]), &forward(), &websocket, Wish::None).is_ok());
        assert!(allow(&with(&["websocket"]), &forward(), &websocket, Wish::Refused).is_err());
    }
}
