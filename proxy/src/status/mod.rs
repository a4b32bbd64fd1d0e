//! What the kubelet and Prometheus ask of a sidecar in a pod: readiness, the application's probes, metrics of both, and the two orders
//! that come from inside the pod (`/drain`, `/quitquitquit`). In Istio a second process does this.
//!
//! Runs on the housekeeping runtime. Nothing here is captured: its ports are excluded, and what it asks of the application comes
//! from [`INBOUND_SOURCE_V4`] or [`INBOUND_SOURCE_V6`], which the rules let through.

mod client;
mod grpc;
pub mod probers;
pub mod scrape;
mod tls;
pub mod tools;

use std::net::IpAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use osier_core::admin::{Pages, Reply, Request, check_origin};

use self::probers::Probers;
use self::scrape::Scrape;
use crate::admin::Admin;
use crate::capture::rules::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6};
use crate::dns::Dns;

/// Port of [`Status`] unless ProxyConfig's `statusPort` says another.
pub const STATUS_PORT: u16 = 15020;
/// Port of readiness alone.
pub const READINESS_PORT: u16 = 15021;
/// Port of the proxy's own metrics alone.
pub const METRICS_PORT: u16 = 15090;

/// The address to come from towards `address` where traffic is captured: one that the rules let through.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => INBOUND_SOURCE_V4.into(),
        IpAddr::V6(_) => INBOUND_SOURCE_V6.into(),
    }
}

/// The status port's pages.
#[derive(Debug)]
pub struct Status {
    admin: Arc<Admin>,
    probers: Probers,
    scrape: Scrape,
    dns: Option<Arc<Dns>>,
}

impl Status {
    /// Pages over the process's parts and what injection told of the application.
    pub fn new(admin: Arc<Admin>, probers: Probers, scrape: Scrape, dns: Option<Arc<Dns>>) -> Self {
        Self { admin, probers, scrape, dns }
    }

    fn names(&self) -> Reply {
        match &self.dns {
            Some(dns) => Reply::json(&dns.page()),
            None => Reply::status(
                StatusCode::NOT_FOUND,
                "DNS is not captured: ISTIO_META_DNS_CAPTURE is not set\n",
            ),
        }
    }

    async fn probe(&self, request: &Request) -> Reply {
        match self.probers.get(&request.path) {
            Some(prober) => prober.ask(&request.headers).await,
            None => {
                let text = format!("this pod has no probe {}\n", request.path);
                Reply::status(StatusCode::BAD_REQUEST, text)
            }
        }
    }

    /// Something that changes the process: only from inside the pod, and not by a page in somebody's browser there.
    fn order(&self, request: &Request, run: fn(&Admin) -> Reply) -> Reply {
        if !request.peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
            return Reply::status(StatusCode::FORBIDDEN, "only from localhost\n");
        }
        if let Err(reason) = check_origin(&request.headers) {
            return Reply::status(StatusCode::FORBIDDEN, reason);
        }
        if request.method != Method::POST {
            return Reply::status(StatusCode::METHOD_NOT_ALLOWED, "POST it\n");
        }
        run(&self.admin)
    }
}

impl Pages for Status {
    /// Asked for by names too; what changes anything is guarded in `Status::order`.
    const GUARDED: bool = false;

    async fn answer(&self, request: Request) -> Reply {
        match request.path.as_str() {
            "/quitquitquit" => self.order(&request, Admin::quit),
            "/drain" => self.order(&request, Admin::begin_drain),
            _ if request.method != Method::GET && request.method != Method::HEAD => {
                Reply::status(StatusCode::METHOD_NOT_ALLOWED, "GET it\n")
            }
            "/healthz/ready" => self.admin.health(),
            "/stats/prometheus" | "/metrics" => {
                let more = self.dns.as_ref().map(|dns| dns.families()).unwrap_or_default();
                self.scrape.page(&self.admin, &request.headers, more).await
            }
            "/debug/ndsz" => self.names(),
            path if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                self.probe(&request).await
            }
            _ => Reply::status(StatusCode::NOT_FOUND, HELP),
        }
    }
}

const HELP: &str = "\
  /healthz/ready: whether this sidecar is ready
  /stats/prometheus: figures of the sidecar and of the application
  /app-health/<container>/{livez,readyz,startupz}, /app-lifecycle/<container>/{prestopz,poststartz}: the application's own
  /debug/ndsz: hosts that DNS answers, where it is captured
  /drain (POST, from localhost): end inbound connections politely, go on serving
  /quitquitquit (POST, from localhost): end at once
";

#[cfg(test)]
mod tests;
