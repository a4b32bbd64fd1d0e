//! Where a captured connection was going before the kernel's REDIRECT rule turned it to us.

use std::net::SocketAddr;

use socket2::SockRef;

/// How original destinations are found; tests put a function in its place.
#[derive(Debug, Clone, Copy, Default)]
pub enum OriginalDestination {
    /// Ask the kernel's connection tracking (SO_ORIGINAL_DST).
    #[default]
    Kernel,
    /// Ask this function of (peer, local) instead.
    Mocked(fn(SocketAddr, SocketAddr) -> Option<SocketAddr>),
}

impl OriginalDestination {
    /// The original destination of an accepted socket; `None` where it was not redirected.
    ///
    /// A socket that came to us directly has no entry in the tracking table, or one that says our own address.
    pub fn of(self, socket: SockRef<'_>, peer: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
        let original = match self {
            Self::Mocked(ask) => ask(peer, local),
            // Also on a socket of both families: the entry of an IPv4 connection is in the IPv4 table.
            Self::Kernel if local.ip().to_canonical().is_ipv4() => socket.original_dst_v4().ok()?.as_socket(),
            Self::Kernel => socket.original_dst_v6().ok()?.as_socket(),
        };
        original.filter(|address| !same(*address, local))
    }
}

fn same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_direct_connection_has_none_and_a_mocked_one_what_the_test_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (socket, peer) = listener.accept().expect("accept");
        let local = client.peer_addr().expect("address");
        assert_eq!(OriginalDestination::Kernel.of(SockRef::from(&socket), peer, local), None);
        let elsewhere =
            OriginalDestination::Mocked(|_, local| Some(SocketAddr::new([10, 0, 0, 1].into(), local.port())));
        let expected = SocketAddr::new([10, 0, 0, 1].into(), local.port());
        assert_eq!(elsewhere.of(SockRef::from(&socket), peer, local), Some(expected));
        let itself = OriginalDestination::Mocked(|_, local| Some(local));
        assert_eq!(itself.of(SockRef::from(&socket), peer, local), None);
    }
}
