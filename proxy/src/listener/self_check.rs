//! Whether a pod's traffic really comes to us: a connection of our own that can only arrive here if the kernel turns it.
//!
//! The sidecar connects to its own pod's address, on a port where nobody listens. The rules turn exactly this (what the sidecar's user
//! sends to its own pod, so that policy holds for self-calls too) to the inbound listener, which sees the original port. Without rules
//! the connection is refused. What the application itself sends is turned by rules of the same transaction.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::sync::Notify;

use crate::capture::rules::SELF_CHECK_PORT;

/// How long a connection to the own pod may take.
const LIMIT: Duration = Duration::from_secs(1);

/// What is awaited of the check's connection.
#[derive(Debug, Default)]
pub struct SelfCheck {
    /// Port that it comes from; 0 where none is awaited.
    awaited: AtomicU16,
    arrived: Notify,
}

/// Why no connection of ours came back.
#[derive(Debug, thiserror::Error)]
pub enum NotCaptured {
    /// It went where it said.
    #[error("a connection to {0} was not turned to this sidecar: {1}")]
    NotTurned(SocketAddr, io::Error),
    /// Somebody took it, but not our listener.
    #[error("a connection to {0} arrived somewhere else")]
    Elsewhere(SocketAddr),
}

impl SelfCheck {
    /// True for the check's own connection, which nobody is to serve. One load, but while a check runs.
    pub fn takes(&self, peer: SocketAddr, destination: SocketAddr) -> bool {
        let awaited = self.awaited.load(Ordering::Acquire);
        if awaited == 0 || awaited != peer.port() || destination.port() != SELF_CHECK_PORT {
            return false;
        }
        self.arrived.notify_one();
        true
    }

    /// Connects to the pod at `address` and waits until that arrives. One check at a time.
    pub async fn run(&self, address: IpAddr) -> Result<(), NotCaptured> {
        let to = SocketAddr::new(address, SELF_CHECK_PORT);
        let outcome = self.connect(to).await;
        self.awaited.store(0, Ordering::Release);
        outcome
    }

    async fn connect(&self, to: SocketAddr) -> Result<(), NotCaptured> {
        let not_turned = |error| NotCaptured::NotTurned(to, error);
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(not_turned)?;
        socket.bind(SocketAddr::new(to.ip(), 0)).map_err(not_turned)?;
        let own = socket.local_addr().map_err(not_turned)?;
        self.awaited.store(own.port(), Ordering::Release);
        let silence = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let connected = tokio::time::timeout(LIMIT, socket.connect(to)).await;
        let _stream = connected.unwrap_or_else(|_| Err(silence())).map_err(not_turned)?;
        let arrived = tokio::time::timeout(LIMIT, self.arrived.notified()).await;
        arrived.map_err(|_| NotCaptured::Elsewhere(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_awaited_connection_is_taken() {
        let check = SelfCheck::default();
        let at = |text: &str| text.parse().expect("an address");
        assert!(!check.takes(at("10.0.0.7:0"), at("10.0.0.7:15002")), "none is awaited");
        check.awaited.store(4000, Ordering::Release);
        assert!(!check.takes(at("10.0.0.7:4001"), at("10.0.0.7:15002")));
        assert!(!check.takes(at("10.0.0.7:4000"), at("10.0.0.7:80")));
        assert!(check.takes(at("10.0.0.7:4000"), at("10.0.0.7:15002")));
    }

    #[tokio::test]
    async fn without_rules_the_connection_is_refused() {
        // An address of this test alone: nobody listens there.
        let error = SelfCheck::default().run([127, 77, 0, 3].into()).await.expect_err("nothing is captured");
        assert!(error.to_string().contains("127.77.0.3:15002 was not turned"), "{error}");
    }
}
