//! `--forward LOCALPORT=HOST:PORT`: TCP for programs that know nothing of proxies.
//!
//! Each connection becomes `CONNECT HOST:PORT` on the sidecar's explicit proxy, which takes it as a new original destination:
//! routing, balancing and metrics are those of any other connection.

use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest answer to CONNECT that is read.
const MAX_ANSWER: usize = 8 * 1024;

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    local: u16,
    target: String,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a forward is LOCALPORT=HOST:PORT".to_owned();
        let (local, target) = text.split_once('=').ok_or_else(wrong)?;
        let (host, port) = target.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().map_err(|_| wrong())?;
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong());
        }
        Ok(Self { local: local.parse().map_err(|_| wrong())?, target: target.to_owned() })
    }
}

impl Forward {
    /// Starts to accept; ends with the process.
    pub async fn start(&self, proxy: SocketAddr) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.local));
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for --forward: is another program there?")
        })?;
        let target = self.target.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    if let Err(error) = tunnel(stream, proxy, &target).await {
                        eprintln!("osier: forward to {target}: {error:#}");
                    }
                });
            }
        });
        Ok(())
    }
}

async fn tunnel(mut local: TcpStream, proxy: SocketAddr, target: &str) -> Result<()> {
    let mut upstream = TcpStream::connect(proxy).await.context("cannot reach the sidecar")?;
    upstream.set_nodelay(true)?;
    local.set_nodelay(true)?;
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    upstream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            bail!("the sidecar's answer to CONNECT has no end");
        }
        answer.push(upstream.read_u8().await.context("the sidecar closed the connection")?);
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.split(' ').nth(1).unwrap_or("");
    if !status.starts_with('2') {
        bail!("the sidecar refused: {}", line.lines().next().unwrap_or(""));
    }
    tokio::io::copy_bidirectional(&mut local, &mut upstream).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_port_host_port() {
        assert_eq!(
            "6379=cache.default:6379".parse(),
            Ok(Forward { local: 6379, target: "cache.default:6379".into() })
        );
        for wrong in ["6379", "6379=cache", "x=cache:1", "1=:1", "1=a b:1", "1=cache:x"] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
