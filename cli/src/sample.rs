//! The sample application of `osier demo`: a small HTTP server that says who it is and calls the services that it is told to.
//!
//! It knows nothing of the mesh: calls go through `http_proxy` where that is set, as with any program.
//! `POST /fail?percent=N` makes it answer 500 to that share of its requests, so that a person can break a version.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

use crate::client::Client;

/// What a sample is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Name that it answers with.
    #[arg(long)]
    name: String,
    /// Version that it answers with.
    #[arg(long)]
    version: String,
    /// Port.
    #[arg(long, env = "PORT")]
    port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Services to call for each request, as `host:port`.
    #[arg(long)]
    call: Vec<String>,
    /// Time that each request takes, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

struct Sample {
    arguments: Arguments,
    fail_percent: AtomicU32,
    client: Client,
}

/// Serves until the process is ended; SIGTERM lets requests in flight finish.
pub async fn serve(arguments: Arguments) -> Result<()> {
    let address = SocketAddr::new(arguments.listen, arguments.port);
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: is another program there?"))?;
    let client = Client::from_environment()?;
    let sample = Arc::new(Sample { arguments, fail_percent: AtomicU32::new(0), client });
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted { Ok((stream, _)) => stream, Err(_) => continue },
            _ = terminate.recv() => break,
        };
        let _ = stream.set_nodelay(true);
        let sample = sample.clone();
        let service = service_fn(move |request| {
            let sample = sample.clone();
            async move { Ok::<_, Infallible>(sample.answer(request).await) }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            let _ = watched.await;
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(Duration::from_secs(5), graceful.shutdown()).await;
    Ok(())
}

impl Sample {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Arguments { name, version, delay_ms, .. } = &self.arguments;
        if request.method() == Method::POST && request.uri().path() == "/fail" {
            return self.set_failing(request.uri().query().unwrap_or(""));
        }
        if *delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(*delay_ms)).await;
        }
        if rand::random_range(0..100) < self.fail_percent.load(Ordering::Relaxed) {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{name} {version} is broken\n"));
        }
        let mut lines = vec![format!("{name} {version}")];
        for host in &self.arguments.call {
            match self.client.get(host, "/").await {
                Ok(answer) if answer.status == 200 => {
                    lines.extend(answer.body_text().lines().map(|line| format!("  {line}")));
                }
                Ok(answer) => {
                    return text(
                        StatusCode::BAD_GATEWAY,
                        format!(
                            "{name} {version}: {host} answered {}: {}\n",
                            answer.status,
                            answer.body_text()
                        ),
                    );
                }
                Err(error) => {
                    return text(StatusCode::BAD_GATEWAY, format!("{name} {version}: {host}: {error:#}\n"));
                }
            }
        }
        text(StatusCode::OK, lines.join("\n") + "\n")
    }

    /// `percent=N` in the query, 100 without one.
    fn set_failing(&self, query: &str) -> Response<Full<Bytes>> {
        let percent = query.strip_prefix("percent=").map_or(Ok(100), str::parse::<u32>);
        match percent {
            Ok(percent) if percent <= 100 => {
                self.fail_percent.store(percent, Ordering::Relaxed);
                text(StatusCode::OK, format!("{percent} % of requests fail from now on\n"))
            }
            _ => text(StatusCode::BAD_REQUEST, "percent must be a number from 0 to 100\n".into()),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
