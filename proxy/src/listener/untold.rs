//! What a client hears for whose destination the control plane has said nothing in time: 503 with the reason where it speaks HTTP/1, else
//! the end of its connection. No listener is there to serve it, so nothing that it sends goes anywhere.

use std::time::Duration;

use bytes::BytesMut;

use super::detect::{Detected, detect};
use crate::config::listener::Inspect;
use crate::io::Stream;

/// For its first bytes. It was kept waiting for so long that they are here.
const SHOWS: Duration = Duration::from_millis(100);
/// For it to take the answer and leave.
const LEAVES: Duration = Duration::from_secs(1);

/// Tells the client `why`, if it can be told, and lets it go.
pub(super) async fn tell(stream: Stream, why: &str) {
    let inspect = Inspect { http: true, timeout: Some(SHOWS), ..Inspect::default() };
    let Ok(Detected { application_protocols, received, .. }) =
        detect(&stream, &inspect, BytesMut::new()).await
    else {
        return;
    };
    if !application_protocols.iter().any(|protocol| protocol.starts_with("http/1")) {
        return;
    }
    let body = if received.starts_with(b"HEAD ") { "" } else { why };
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        why.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown_write()?;
        // What it still sends is taken: closing before that would take the answer away from it.
        while stream.read(&mut [0; 1024]).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(LEAVES, told).await;
}
