//! Small programs that the rows need: a bare relay, a TCP echo and a gRPC backend. Each runs as a process of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Copies bytes between `listen` and `target`: what any proxy costs at least.
pub fn relay(listen: SocketAddr, target: SocketAddr) -> ExitCode {
    serve(listen, move |mut downstream| async move {
        let Ok(mut upstream) = TcpStream::connect(target).await else { return };
        let _ = upstream.set_nodelay(true);
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut downstream, &mut upstream, 16384, 16384).await;
    })
}

/// The same, but everything arrives `delay` after it was sent: a network with distance.
pub fn slow_relay(listen: SocketAddr, target: SocketAddr, delay: Duration) -> ExitCode {
    serve(listen, move |downstream| async move {
        let Ok(upstream) = TcpStream::connect(target).await else { return };
        let _ = upstream.set_nodelay(true);
        let (from_client, to_client) = downstream.into_split();
        let (from_server, to_server) = upstream.into_split();
        tokio::join!(late(from_client, to_server, delay), late(from_server, to_client, delay));
    })
}

async fn late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Sends back what it gets.
pub fn echo(listen: SocketAddr) -> ExitCode {
    serve(listen, |mut stream| async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    })
}

/// Answers each gRPC call with a message of 1 KiB and status 0.
pub fn grpc(listen: SocketAddr) -> ExitCode {
    serve(listen, |stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            let mut message = vec![0, 0, 0, 4, 0];
            message.resize(5 + 1024, b'x');
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a valid value"));
            let frames =
                [Ok::<_, Infallible>(Frame::data(Bytes::from(message))), Ok(Frame::trailers(trailers))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let response = Response::builder().header("content-type", "application/grpc").body(body);
            Ok::<_, Infallible>(response.expect("a valid response"))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
}

fn serve<F: Future<Output = ()> + Send + 'static>(
    listen: SocketAddr,
    handle: impl Fn(TcpStream) -> F + Send + 'static,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let Ok(listener) = TcpListener::bind(listen).await else { return ExitCode::FAILURE };
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(handle(stream));
            }
        }
    })
}
