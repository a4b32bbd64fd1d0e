//! Servers that speak first (MariaDB, SMTP) on ports that take mutual TLS and plaintext. A client of the mesh says hello at once, whoever
//! comes in plaintext waits for the server; so who is silent for a moment, where the server speaks first, has come in plaintext.
//!
//! Whether a server speaks first is found out once for a port, by a connection of our own to it. Whoever has spoken mutual TLS with us is
//! given longer. Nothing is decided where a client has said something, where the port takes nothing but TLS, or by a timer alone: behind
//! a server that waits for its client every silence is waited out. A client of the mesh whose hello is later than that is taken for
//! plaintext: it gets what anybody would, without a name to policies, and its handshake fails, which its proxy tries again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::config::cluster::Cluster;
use crate::config::listener::TcpProxy;
use crate::upstream::balance::Tried;
use crate::upstream::choose::ChooseBy;
use crate::upstream::connect::open_tcp;
use crate::worker::Worker;

/// A client of the mesh sends its hello with the end of TCP's handshake, however far away it is.
const SILENCE: Duration = Duration::from_millis(4);
/// For whom has proved before that it is one.
const LONG_SILENCE: Duration = Duration::from_secs(1);
/// How long a server has to speak.
const GREETING: Duration = Duration::from_secs(2);
/// What was found out holds so long, and so does who has proved what.
const HOLDS: Duration = Duration::from_secs(600);
/// Clients and ports that are remembered.
const MOST: usize = 1024;

/// What is known of ports and clients. Asked by connections to such ports alone.
#[derive(Debug, Default)]
pub struct ServerFirst {
    ports: Mutex<HashMap<u16, Port>>,
    members: Mutex<HashMap<IpAddr, Instant>>,
}

#[derive(Debug, Clone)]
struct Port {
    since: Instant,
    speaks_first: Arc<OnceCell<bool>>,
}

/// The workload behind a port, as a chain for plaintext leads there.
pub struct Server<'a> {
    /// The port.
    pub port: u16,
    /// Of the chain.
    pub proxy: &'a TcpProxy,
    /// How its endpoint is chosen.
    pub by: ChooseBy<'a>,
}

impl ServerFirst {
    /// Somebody at this address has spoken mutual TLS.
    pub fn proved(&self, address: IpAddr) {
        let now = Instant::now();
        let mut members = self.members.lock();
        if members.len() >= MOST {
            members.retain(|_, seen| now - *seen < HOLDS);
        }
        if members.len() < MOST || members.contains_key(&address) {
            members.insert(address, now);
        }
    }

    /// Completes when a client that says nothing has come in plaintext; where that can't be told, never.
    pub async fn silence_is_plaintext(&self, worker: &Worker, client: IpAddr, server: Server<'_>) {
        tokio::time::sleep(self.patience(client)).await;
        let known = self.port(server.port);
        // Of many at once one looks, and the others wait for it.
        match known.get_or_try_init(|| speaks_first(worker, &server)).await {
            Ok(true) => {}
            // Who can't be asked now may be asked by the next client.
            Ok(false) | Err(Away) => std::future::pending().await,
        }
    }

    /// How long a client may be silent before that means something.
    fn patience(&self, client: IpAddr) -> Duration {
        let proved = self.members.lock().get(&client).is_some_and(|seen| seen.elapsed() < HOLDS);
        if proved { LONG_SILENCE } else { SILENCE }
    }

    fn port(&self, port: u16) -> Arc<OnceCell<bool>> {
        let now = Instant::now();
        let mut ports = self.ports.lock();
        ports.retain(|_, known| now - known.since < HOLDS);
        if ports.len() >= MOST && !ports.contains_key(&port) {
            // Somebody looks at ports one by one: none of them is worth remembering.
            ports.clear();
        }
        let fresh = || Port { since: now, speaks_first: Arc::default() };
        ports.entry(port).or_insert_with(fresh).speaks_first.clone()
    }
}

/// The workload takes no connection, or ends it at once.
struct Away;

/// Connects to the workload and hears whether it says something first.
async fn speaks_first(worker: &Worker, server: &Server<'_>) -> Result<bool, Away> {
    let handle = &server.proxy.clusters.choose(worker.random()).cluster;
    let cluster = handle.current.load_full().ok_or(Away)?;
    let connection = connect(worker, &cluster, server.by).await.ok_or(Away)?;
    let mut greeting = [0; 1];
    match tokio::time::timeout(GREETING, connection.stream.read(&mut greeting)).await {
        Ok(Ok(read)) if read > 0 => Ok(true),
        Ok(_) => Err(Away),
        Err(_) => Ok(false),
    }
}

async fn connect(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    by: ChooseBy<'_>,
) -> Option<crate::upstream::connect::TcpConnection> {
    let mut tried = Tried::avoiding(0);
    let endpoint = worker.pool.choose(cluster, by, &mut tried, || worker.random()).await.ok()?;
    open_tcp(&endpoint.state, &cluster.spec).await.ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_proved_is_waited_for_and_memory_is_bounded() {
        let first = ServerFirst::default();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        first.proved(address(1));
        assert_eq!((first.patience(address(1)), first.patience(address(2))), (LONG_SILENCE, SILENCE));
        tokio::time::advance(HOLDS).await;
        assert_eq!(first.patience(address(1)), SILENCE, "the address may be somebody else's by now");
        (0..3 * MOST as u32).for_each(|number| first.proved(address(number)));
        (0..3 * MOST as u16).for_each(|number| drop(first.port(number)));
        assert!(first.members.lock().len() <= MOST && first.ports.lock().len() <= MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_out_holds_for_a_while() {
        let first = ServerFirst::default();
        first.port(25).set(true).expect("nobody has looked yet");
        assert_eq!(first.port(25).get(), Some(&true));
        tokio::time::advance(HOLDS).await;
        assert_eq!(first.port(25).get(), None);
    }
}
