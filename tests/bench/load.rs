//! What is sent: wrk and h2load for saturated rows, clients of our own where the tools can't do what the row needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::keys::Keys;

/// What a load did.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Requests that were answered as they should be.
    pub requests: u64,
    /// Everything else.
    pub errors: u64,
    /// Time that it took.
    pub elapsed: Duration,
    /// Latencies, from the intended send time, where the row measures them; sorted.
    pub latencies: Vec<Duration>,
}

/// Saturated HTTP/1.1 over 64 kept connections, each request with this header line as well.
pub fn http1(target: SocketAddr, path: &str, header: Option<&str>, time: Duration) -> Result<Done> {
    let started = Instant::now();
    let output = Command::new("wrk")
        .args(["-t1", "-c64", &format!("-d{}s", time.as_secs())])
        .args(header.iter().flat_map(|line| ["-H", line]))
        .arg(format!("http://{target}{path}"))
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let requests =
        number_before(&text, " requests in ").with_context(|| format!("wrk printed no count: {text}"))?;
    let socket_errors = text
        .lines()
        .find(|line| line.contains("Socket errors"))
        .map_or(0, |line| line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum());
    let refused =
        text.lines().find_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses: ")?.parse().ok());
    Ok(Done {
        requests,
        errors: socket_errors + refused.unwrap_or(0),
        elapsed: started.elapsed(),
        ..Done::default()
    })
}

/// Saturated HTTP/2: `connections` with `streams` each; gRPC calls of 1 KiB where `grpc` is set.
pub fn http2(
    target: SocketAddr,
    connections: u32,
    streams: u32,
    grpc: Option<&std::path::Path>,
    time: Duration,
) -> Result<Done> {
    let mut command = Command::new("h2load");
    command.args([
        "-t1",
        "-c",
        &connections.to_string(),
        "-m",
        &streams.to_string(),
        "-D",
        &time.as_secs().to_string(),
    ]);
    let mut path = "/";
    if let Some(message) = grpc {
        command.arg("-d").arg(message).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        path = "/bench.Echo/Call";
    }
    let output = command.arg(format!("http://{target}{path}")).output().context("cannot run h2load")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let succeeded =
        number_before(&text, " succeeded").with_context(|| format!("h2load printed no count: {text}"))?;
    let failed = number_before(&text, " failed").unwrap_or(0);
    Ok(Done { requests: succeeded, errors: failed, elapsed: time, ..Done::default() })
}

/// The number that stands right before `marker`.
fn number_before(text: &str, marker: &str) -> Option<u64> {
    let end = text.find(marker)?;
    text[..end].rsplit([' ', ',', '\n']).next()?.parse().ok()
}

/// A new connection for each request, by TLS where there is a connector for it, from many loopback addresses, eight at a time.
pub fn new_connections(target: SocketAddr, tls: Option<TlsConnector>, time: Duration) -> Result<Done> {
    run(async move {
        let done = Arc::new(Mutex::new(Done::default()));
        let deadline = Instant::now() + time;
        let started = Instant::now();
        let workers: Vec<_> = (0..8u8)
            .map(|worker| {
                let (done, tls) = (done.clone(), tls.clone());
                tokio::spawn(async move {
                    let mut turn = 0u32;
                    while Instant::now() < deadline {
                        turn = turn.wrapping_add(1);
                        let source =
                            Ipv4Addr::new(127, 1 + worker, (turn / 250 % 250) as u8, (turn % 250 + 1) as u8);
                        let outcome = one_request(source, target, tls.as_ref()).await;
                        let mut done = done.lock();
                        match outcome {
                            Ok(true) => done.requests += 1,
                            _ => done.errors += 1,
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await?;
        }
        let mut done = done.lock().clone();
        done.elapsed = started.elapsed();
        Ok(done)
    })
}

async fn one_request(source: Ipv4Addr, target: SocketAddr, tls: Option<&TlsConnector>) -> Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = secured(socket.connect(target).await?, tls).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(2048);
    // Not everybody says goodbye by TLS.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// `rps` requests per second on 64 kept connections, each sent when it is due whether or not others are answered.
pub fn open_loop(target: SocketAddr, rps: u32, time: Duration) -> Result<Done> {
    run(async move {
        const CONNECTIONS: u32 = 64;
        let started = Instant::now();
        let first = tokio::time::Instant::now() + Duration::from_millis(50);
        let tasks: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let gap = Duration::from_secs(1) * CONNECTIONS / rps;
                let begin = first + gap * number / CONNECTIONS;
                tokio::spawn(paced(target, begin, gap, first + time))
            })
            .collect();
        let mut done = Done::default();
        for task in tasks {
            let part = task.await??;
            done.requests += part.requests;
            done.errors += part.errors;
            done.latencies.extend(part.latencies);
        }
        done.latencies.sort_unstable();
        done.elapsed = started.elapsed();
        Ok(done)
    })
}

/// One connection of the open loop. A late answer delays the next send, but its latency counts from when it was due.
async fn paced(
    target: SocketAddr,
    begin: tokio::time::Instant,
    gap: Duration,
    end: tokio::time::Instant,
) -> Result<Done> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let mut done = Done::default();
    let mut buffer = vec![0; 8192];
    let mut due = begin;
    while due < end {
        tokio::time::sleep_until(due).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
        match read_answer(&mut stream, &mut buffer).await {
            Ok(head) if head.starts_with("http/1.1 200") => done.requests += 1,
            _ => {
                done.errors += 1;
                stream = TcpStream::connect(target).await?;
            }
        }
        done.latencies.push(due.elapsed());
        due += gap;
    }
    Ok(done)
}

/// Reads one answer with a content length (or chunked to its last chunk); its head in lower case.
pub async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    buffer: &mut [u8],
) -> Result<String> {
    let mut answer: Vec<u8> = Vec::with_capacity(2048);
    loop {
        let read = stream.read(buffer).await?;
        if read == 0 {
            bail!("closed");
        }
        answer.extend_from_slice(&buffer[..read]);
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end + 2]).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let complete = match length {
            Some(length) => answer.len() >= end + 4 + length,
            None => answer.ends_with(b"0\r\n\r\n"),
        };
        if complete {
            return Ok(head);
        }
    }
}

/// A 1 KiB echo, again and again on 64 kept connections.
pub fn tcp(target: SocketAddr, time: Duration) -> Result<Done> {
    run(async move {
        let deadline = Instant::now() + time;
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(target).await?;
                    stream.set_nodelay(true)?;
                    let (message, mut answer) = ([b'x'; 1024], [0; 1024]);
                    let mut requests = 0;
                    while Instant::now() < deadline {
                        stream.write_all(&message).await?;
                        stream.read_exact(&mut answer).await?;
                        requests += 1;
                    }
                    anyhow::Ok(requests)
                })
            })
            .collect();
        let mut done = Done { elapsed: time, ..Done::default() };
        for task in tasks {
            match task.await? {
                Ok(requests) => done.requests += requests,
                Err(_) => done.errors += 1,
            }
        }
        Ok(done)
    })
}

/// As much as goes through: four connections send and read their echo at the same time. Bytes in both directions are counted.
pub fn tcp_bulk(target: SocketAddr, time: Duration) -> Result<u64> {
    const CONNECTIONS: usize = 4;
    run(async move {
        let deadline = Instant::now() + time;
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(target).await?;
            tasks.push(tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                let send = async move {
                    let chunk = vec![b'x'; 64 * 1024];
                    while Instant::now() < deadline {
                        to.write_all(&chunk).await?;
                    }
                    to.shutdown().await
                };
                let receive = async move {
                    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
                    loop {
                        match from.read(&mut buffer).await? {
                            0 => return std::io::Result::Ok(total),
                            read => total += read as u64,
                        }
                    }
                };
                let (sent, received) = tokio::join!(send, receive);
                sent.and(received)
            }));
        }
        let mut bytes = 0;
        for task in tasks {
            bytes += 2 * task.await??;
        }
        Ok(bytes)
    })
}

/// Opens `count` connections and uses each once, so that all of them are kept; they end when the value is dropped.
pub fn idle_connections(
    target: SocketAddr,
    count: u32,
    tls: Option<&TlsConnector>,
) -> Result<(tokio::runtime::Runtime, Vec<Box<dyn Stream>>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let streams = runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = secured(TcpStream::connect(target).await?, tls).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
            streams.push(stream);
        }
        let mut buffer = vec![0; 8192];
        for stream in &mut streams {
            read_answer(stream, &mut buffer).await?;
        }
        anyhow::Ok(streams)
    })?;
    Ok((runtime, streams))
}

/// A connection, whatever is in it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn secured(stream: TcpStream, tls: Option<&TlsConnector>) -> Result<Box<dyn Stream>> {
    Ok(match tls {
        Some(tls) => Box::new(tls.connect(Keys::name()?, stream).await?),
        None => Box::new(stream),
    })
}

/// Runs a load on this thread.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
