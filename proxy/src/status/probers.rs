//! The application's probes and lifecycle hooks, which injection has turned to the status port (`ISTIO_KUBE_APP_PROBERS`): asked on
//! the kubelet's behalf, at the pod's own address, from an address that isn't captured.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use osier_core::admin::Reply;
use serde::Deserialize;

use super::client::{self, Ask, Bound};
use super::grpc;

/// Of an answer's body, as the kubelet reads it.
const MOST_BODY: usize = 10 * 1024;
/// As the kubelet follows them.
const MOST_REDIRECTS: usize = 10;
/// The kubelet's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Probes by the path that stands for them.
#[derive(Debug, Default)]
pub struct Probers(HashMap<String, Prober>);

/// One probe or hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prober {
    /// The pod and the port.
    address: SocketAddr,
    /// Where to come from, if that matters.
    source: Option<IpAddr>,
    /// The port of the paths.
    status_port: u16,
    kind: Kind,
    timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Http { tls: bool, path: String },
    Tcp,
    Grpc { service: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProber {
    http_get: Option<RawHttpGet>,
    tcp_socket: Option<RawPort>,
    grpc: Option<RawGrpc>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Deserialize)]
struct RawHttpGet {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
}

#[derive(Deserialize)]
struct RawPort {
    port: u16,
}

#[derive(Deserialize)]
struct RawGrpc {
    port: u16,
    service: Option<String>,
}

impl Probers {
    /// Reads the variable, for a pod at `address` with this status port. The pod is asked from `source`.
    pub fn parse(
        text: &str,
        address: IpAddr,
        source: Option<IpAddr>,
        status_port: u16,
    ) -> Result<Self, String> {
        let raw: HashMap<String, RawProber> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let probers = raw.into_iter().map(|(path, raw)| {
            let prober = Prober { source, ..Prober::check(&path, raw, address, status_port)? };
            Ok((path, prober))
        });
        probers.collect::<Result<_, String>>().map(Self)
    }

    /// The probe of this path.
    pub fn get(&self, path: &str) -> Option<&Prober> {
        self.0.get(path)
    }
}

impl Prober {
    fn check(path: &str, raw: RawProber, address: IpAddr, status_port: u16) -> Result<Self, String> {
        let words: Vec<&str> = path.split('/').collect();
        let known = matches!(
            words[..],
            ["", "app-health", _, "livez" | "readyz" | "startupz"]
                | ["", "app-lifecycle", _, "prestopz" | "poststartz"]
        );
        if !known {
            return Err(format!("{path} stands for no probe"));
        }
        let (port, kind) = match (raw.http_get, raw.tcp_socket, raw.grpc) {
            (Some(get), None, None) => {
                let path = if get.path.starts_with('/') { get.path } else { format!("/{}", get.path) };
                (get.port, Kind::Http { tls: get.scheme.eq_ignore_ascii_case("HTTPS"), path })
            }
            (None, Some(tcp), None) => (tcp.port, Kind::Tcp),
            (None, None, Some(grpc)) => (grpc.port, Kind::Grpc { service: grpc.service.unwrap_or_default() }),
            _ => return Err(format!("{path}: exactly one of httpGet, tcpSocket and grpc is needed")),
        };
        let timeout = match raw.timeout_seconds {
            0 => DEFAULT_TIMEOUT,
            seconds => Duration::from_secs(seconds.into()),
        };
        Ok(Self { address: SocketAddr::new(address, port), source: None, status_port, kind, timeout })
    }

    /// Asks the application; `headers` are the kubelet's.
    pub async fn ask(&self, headers: &HeaderMap) -> Reply {
        let asked = async {
            match &self.kind {
                Kind::Http { tls, path } => self.http(*tls, path, headers).await,
                Kind::Tcp => {
                    let connected = client::connect(self.address, self.source).await;
                    connected.map(|_| Reply::text("")).map_err(|error| error.to_string())
                }
                Kind::Grpc { service } => {
                    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
                    let served =
                        grpc::check(self.address, self.source, service, agent.unwrap_or_default()).await;
                    served.map(|()| Reply::text(""))
                }
            }
        };
        let failed = match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(reply)) => return reply,
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer from {} within {:?}", self.address, self.timeout),
        };
        tracing::info!(reason = %failed, "a probe of the application failed");
        Reply::status(StatusCode::INTERNAL_SERVER_ERROR, format!("{failed}\n"))
    }

    async fn http(&self, tls: bool, path: &str, headers: &HeaderMap) -> Result<Reply, String> {
        let scheme = if tls { "https" } else { "http" };
        let text = format!("{scheme}://{}{path}", self.address);
        let mut uri: Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
        let headers = self.forwarded(headers);
        for _ in 0..=MOST_REDIRECTS {
            let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
            let address = SocketAddr::new(self.address.ip(), port);
            let ask = Ask {
                method: &Method::GET,
                address,
                source: self.source,
                uri: &uri,
                headers: headers.clone(),
            };
            let response =
                client::send(ask, Bound::Cut(MOST_BODY)).await.map_err(|error| error.to_string())?;
            let (status, location) = (response.status(), response.headers().get(header::LOCATION));
            if !status.is_redirection() {
                return Ok(Reply::status(status, response.into_body()));
            }
            // To another host: the kubelet is content with that, and so are we; a 3xx without Location would be no answer.
            match location.and_then(|location| redirected(&uri, location)) {
                Some(next) => uri = next,
                None => return Ok(Reply::text("")),
            }
        }
        Err(format!("stopped after {MOST_REDIRECTS} redirects"))
    }

    /// The kubelet's headers, but for those of its connection to us.
    fn forwarded(&self, headers: &HeaderMap) -> HeaderMap {
        let mut headers = headers.clone();
        for name in [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
            header::TE,
            header::TRAILER,
        ] {
            headers.remove(name);
        }
        // A probe without a Host of its own is asked for by our address and port; the application is to see its own port.
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let ours = host.and_then(|host| host.strip_suffix(&format!(":{}", self.status_port)));
        let theirs =
            ours.and_then(|host| HeaderValue::from_str(&format!("{host}:{}", self.address.port())).ok());
        if let Some(host) = theirs {
            headers.insert(header::HOST, host);
        }
        headers
    }
}

/// Where a redirect leads, if that is the same host.
fn redirected(from: &Uri, location: &HeaderValue) -> Option<Uri> {
    let text = location.to_str().ok()?;
    let scheme = from.scheme_str()?;
    if text.contains("://") || text.starts_with("//") {
        let whole = if text.starts_with("//") { format!("{scheme}:{text}") } else { text.to_owned() };
        let to: Uri = whole.parse().ok()?;
        let same = to.host() == from.host() && matches!(to.scheme_str(), Some("http" | "https"));
        return same.then_some(to);
    }
    let folder = match text.starts_with('/') {
        true => "",
        false => from.path().rsplit_once('/').map_or("", |(folder, _)| folder),
    };
    let slash = if text.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{}{folder}{slash}{text}", from.authority()?).parse().ok()
}
