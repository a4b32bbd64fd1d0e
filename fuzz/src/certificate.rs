//! What must hold for any bytes in a peer's certificate and in its first message: nothing panics, and a name that is believed has only
//! bytes that names have.

use osier_proxy::identity::peer::Peer;
use osier_proxy::listener::client_hello::{Hello, MAX_HELLO, parse};
use rustls::pki_types::CertificateDer;

/// Checks one input.
pub fn check(input: &[u8]) {
    if let Ok(peer) = Peer::of(&CertificateDer::from(input)) {
        let names = peer.uris.iter().chain(&peer.dns);
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_graphic()), "{}", name.escape_debug());
        }
    }
    let hello = &input[..input.len().min(MAX_HELLO)];
    let whole = parse(hello);
    // What is known from a part stays so with the rest.
    if let Hello::Found(found) = parse(&hello[..hello.len() / 2]) {
        assert_eq!(whole, Hello::Found(found));
    }
}
