//! `osier-proxy request` and `osier-proxy wait`: what containers without a shell and without curl call, under the names and flags that
//! Istio's `pilot-agent` has for them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{HeaderMap, Method, Uri};
use osier_core::stdout;

use super::STATUS_PORT;
use super::client::{self, Ask, Bound};

const MOST_BODY: usize = 64 << 20;
/// The sidecar answers orders at once; big pages take a while.
const LIMIT: Duration = Duration::from_secs(10);

/// Flags of `request`.
#[derive(Args, Debug, Clone)]
pub struct RequestFlags {
    /// GET or POST.
    pub method: Method,

    /// A path, with its query: `drain`, `stats?usedonly`.
    pub path: String,

    /// Port on localhost: 15000 is the admin interface, 15020 the status port.
    #[arg(long, value_name = "PORT", default_value = "15000")]
    pub debug_port: u16,
}

/// Flags of `wait`.
#[derive(Args, Debug, Clone)]
pub struct WaitFlags {
    /// What answers 200 when the sidecar is ready.
    #[arg(long, value_name = "URL", default_value = "http://localhost:15021/healthz/ready")]
    pub url: Uri,

    /// How long to wait in all, in seconds.
    #[arg(long = "timeoutSeconds", value_name = "N", default_value = "60")]
    pub timeout_seconds: u64,

    /// How long to wait for one answer, in milliseconds.
    #[arg(long = "requestTimeoutMillis", value_name = "N", default_value = "500")]
    pub request_timeout_millis: u64,

    /// How long to pause between requests, in milliseconds.
    #[arg(long = "periodMillis", value_name = "N", default_value = "500")]
    pub period_millis: u64,
}

/// Asks this pod's sidecar for something, and prints the answer. Fails unless it is a 2xx.
pub fn request(flags: &RequestFlags) -> ExitCode {
    report(run(async {
        let path = flags.path.trim_start_matches('/');
        let text = format!("http://localhost:{}/{path}", flags.debug_port);
        let uri: Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
        let answer = ask(&flags.method, &uri, LIMIT).await?;
        let (status, body) = (answer.status(), answer.into_body());
        if status.is_success() {
            return Ok(String::from_utf8_lossy(&body).into_owned());
        }
        let hint = match flags.debug_port {
            STATUS_PORT => "",
            _ if ["drain", "quitquitquit"].contains(&path) => " (is it on --debug-port=15020?)",
            _ => "",
        };
        Err(format!("{} {text}: {status}{hint}: {}", flags.method, String::from_utf8_lossy(&body).trim()))
    }))
}

/// Returns when the sidecar is ready.
pub fn wait(flags: &WaitFlags) -> ExitCode {
    let limit = Duration::from_secs(flags.timeout_seconds);
    let once = Duration::from_millis(flags.request_timeout_millis);
    let pause = Duration::from_millis(flags.period_millis);
    report(run(async {
        let mut last = "nothing was asked".to_owned();
        let ready = async {
            loop {
                last = match ask(&Method::GET, &flags.url, once).await {
                    Ok(answer) if answer.status() == http::StatusCode::OK => return,
                    Ok(answer) => {
                        let words: Vec<_> = answer.body().split(|b| *b == b'\n').collect();
                        let words: Vec<_> = words.into_iter().map(String::from_utf8_lossy).collect();
                        format!("{}: {}", answer.status(), words.join(" ").trim())
                    }
                    Err(error) => error,
                };
                tokio::time::sleep(pause).await;
            }
        };
        match tokio::time::timeout(limit, ready).await {
            Ok(()) => Ok(String::new()),
            Err(_) => Err(format!("{} isn't ready after {limit:?}: {last}", flags.url)),
        }
    }))
}

fn run(work: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(work)
}

fn report(done: Result<String, String>) -> ExitCode {
    match done {
        Ok(text) => {
            stdout::print(format_args!("{text}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("osier-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One request to a host on this machine, by each of its addresses until one answers.
async fn ask(method: &Method, uri: &Uri, limit: Duration) -> Result<http::Response<bytes::Bytes>, String> {
    let host = uri.host().unwrap_or("localhost").trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let asked = async {
        let found = tokio::net::lookup_host((host, port)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| format!("{host}: {error}"))?.collect();
        let mut failed = format!("{host} has no address");
        for address in addresses {
            let ask = Ask { method, address, source: None, uri, headers: HeaderMap::new() };
            match client::send(ask, Bound::Refuse(MOST_BODY)).await {
                Err(client::ClientError::Connect(to, error)) => {
                    failed = format!("cannot connect to {to}: {error}");
                }
                other => return other.map_err(|error| error.to_string()),
            }
        }
        Err(failed)
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}
