//! The admin interface on loopback, with Envoy's paths, methods and shapes, and the readiness probe.
//! Runs on the housekeeping runtime; what it shows is read from where traffic reads it.

mod clusters;
mod control;
mod listeners;
mod prometheus;
mod server_info;
mod stats;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ::prometheus::proto::MetricFamily;
use http::{Method, StatusCode};
use osier_core::admin::{Pages, Reply, Request};
use osier_core::drain::Phase;
use osier_core::logging::Logging;
use osier_core::readiness::{Pending, Readiness};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::bootstrap::Node;
use crate::listener::accept::Acceptors;
use crate::worker::Shared;
use crate::xds::{DumpError, DumpQuery, Progress, Xds};

/// How the process is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// At once.
    Quit,
    /// After a drain.
    Drain {
        /// Outbound connections go on.
        inbound_only: bool,
    },
}

/// What the pages show and do.
#[derive(Debug)]
pub struct Admin {
    /// Configuration, clusters, drain, metrics.
    pub shared: Arc<Shared>,
    /// Sockets.
    pub acceptors: Arc<Acceptors>,
    /// The conversation with the control plane.
    pub xds: Xds,
    /// What is still awaited.
    pub readiness: Readiness,
    /// Levels.
    pub logging: Arc<Logging>,
    /// Where orders to end go.
    pub orders: mpsc::Sender<Order>,
    /// Who we are.
    pub node: Node,
    /// Clusters of the bootstrap file, which no API added.
    pub static_clusters: HashSet<String>,
    /// When the process started.
    pub started: (Instant, SystemTime),
    /// Worker threads.
    pub concurrency: usize,
    /// Counters at the last `/reset_counters`.
    pub baseline: Mutex<HashMap<String, u64>>,
    /// Held after `/healthcheck/fail`.
    pub failed: Mutex<Option<Pending>>,
}

/// A page: path, whether it changes something (POST), and what it is for.
const PAGES: [(&str, bool, &str); 18] = [
    ("/", false, "this list"),
    ("/clusters", false, "upstream clusters and their endpoints; ?format=json"),
    ("/config_dump", false, "configuration as it came; ?resource=, ?mask=, ?name_regex=, ?include_eds"),
    ("/drain_listeners", true, "stop listeners; ?graceful, ?inboundonly, ?skip_exit"),
    ("/healthcheck/fail", true, "be not ready from now on"),
    ("/healthcheck/ok", true, "take back /healthcheck/fail"),
    ("/help", false, "this list"),
    ("/listeners", false, "listeners and their addresses; ?format=json"),
    ("/logging", true, "show or change levels; ?level=, ?paths=part:level,…, ?part=level"),
    ("/memory", false, "memory of the process"),
    ("/plaintext_callers", false, "who reaches the workload without mutual TLS, and whether that is taken"),
    ("/quitquitquit", true, "end at once"),
    ("/ready", false, "LIVE with 200, else the state with 503"),
    ("/reset_counters", true, "counters start at zero again"),
    ("/server_info", false, "version, state, node, uptime"),
    ("/stats", false, "figures; ?filter=regex, ?usedonly, ?format=text|json|prometheus"),
    ("/stats/prometheus", false, "figures for Prometheus"),
    ("/stats/reset", true, "as /reset_counters"),
];

impl Pages for Admin {
    async fn answer(&self, request: Request) -> Reply {
        let path = request.path.trim_end_matches('/');
        let path = if path.is_empty() { "/" } else { path };
        let Some((_, changes, _)) = PAGES.iter().find(|(known, ..)| *known == path) else {
            return Reply::status(StatusCode::NOT_FOUND, format!("no such page: {path}\n\n{}", help()));
        };
        if *changes && request.method != Method::POST {
            let text = format!("Method {} not allowed, POST required.", request.method);
            return Reply::status(StatusCode::METHOD_NOT_ALLOWED, text);
        }
        match path {
            "/clusters" => clusters::page(self, &request),
            "/config_dump" => self.config_dump(&request).await,
            "/drain_listeners" => control::drain_listeners(self, &request),
            "/healthcheck/fail" => control::fail_health(self, true),
            "/healthcheck/ok" => control::fail_health(self, false),
            "/listeners" => listeners::page(self, &request),
            "/logging" => self.logging.page(&request),
            "/memory" => server_info::memory(),
            "/plaintext_callers" => listeners::plaintext_callers(self),
            "/quitquitquit" => control::quit(self),
            "/ready" => self.ready(),
            "/reset_counters" | "/stats/reset" => stats::reset(self),
            "/server_info" => server_info::page(self),
            "/stats" => stats::page(self, &request),
            "/stats/prometheus" => prometheus::page(self),
            _ => Reply::text(help()),
        }
    }
}

fn help() -> String {
    let line = |(path, changes, what): &(&str, bool, &str)| {
        format!("  {path}{}: {what}\n", if *changes { " (POST)" } else { "" })
    };
    format!("admin commands are:\n{}", PAGES.iter().map(line).collect::<String>())
}

impl Admin {
    /// The state, in Envoy's words.
    fn state(&self) -> &'static str {
        if self.shared.drain.phase() > Phase::Running || self.readiness.awaited().contains(&control::FAILED) {
            "DRAINING"
        } else if self.readiness.is_ready() {
            "LIVE"
        } else if self.xds.progress() == Progress::Waiting {
            "PRE_INITIALIZING"
        } else {
            "INITIALIZING"
        }
    }

    fn ready(&self) -> Reply {
        let state = self.state();
        let status = if state == "LIVE" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Reply::status(status, format!("{state}\n"))
    }

    /// As `/ready`, with what is still awaited.
    pub fn health(&self) -> Reply {
        let awaited = self.readiness.awaited().into_iter().map(|what| format!("waiting for {what}\n"));
        let ready = self.ready();
        Reply::status(
            ready.status,
            format!("{}{}", self.state(), awaited.fold("\n".to_owned(), |all, line| all + &line)),
        )
    }

    /// `/stats/prometheus`.
    pub fn metrics(&self) -> Reply {
        prometheus::page(self)
    }

    /// What `/stats/prometheus` shows.
    pub fn families(&self) -> Vec<MetricFamily> {
        prometheus::families(self)
    }

    /// Ends the process at once.
    pub fn quit(&self) -> Reply {
        control::quit(self)
    }

    /// Ends inbound connections politely and goes on serving, until somebody ends the process.
    pub fn begin_drain(&self) -> Reply {
        control::begin_drain(self, Phase::DrainingInbound)
    }

    async fn config_dump(&self, request: &Request) -> Reply {
        let text = |name: &str| request.parameter(name).map(str::to_owned);
        let query = DumpQuery {
            include_eds: request.parameter("include_eds").is_some_and(|v| v != "off" && v != "false"),
            resource: text("resource"),
            mask: text("mask"),
            name_regex: text("name_regex"),
        };
        match self.xds.config_dump(query).await {
            Ok(dump) => Reply::json(&dump),
            Err(error) => {
                let status = match error {
                    DumpError::Regex(_) => StatusCode::BAD_REQUEST,
                    DumpError::NoSuchResource(_) => StatusCode::NOT_FOUND,
                    DumpError::Ended => StatusCode::SERVICE_UNAVAILABLE,
                };
                Reply::status(status, format!("{error}\n"))
            }
        }
    }
}

/// One page of this process, for who asks from outside the pod and gets nothing else.
#[derive(Debug)]
pub struct OnePage {
    admin: Arc<Admin>,
    path: &'static str,
    page: fn(&Admin) -> Reply,
}

impl OnePage {
    /// Readiness, for the kubelet.
    pub fn readiness(admin: Arc<Admin>) -> Self {
        Self { admin, path: "/healthz/ready", page: Admin::health }
    }

    /// The proxy's own metrics, for whoever scrapes them.
    pub fn metrics(admin: Arc<Admin>) -> Self {
        Self { admin, path: "/stats/prometheus", page: Admin::metrics }
    }
}

impl Pages for OnePage {
    /// Load balancers ask by name.
    const GUARDED: bool = false;

    async fn answer(&self, request: Request) -> Reply {
        if request.path != self.path {
            return Reply::status(StatusCode::NOT_FOUND, format!("only {} is here\n", self.path));
        }
        match request.method {
            Method::GET | Method::HEAD => (self.page)(&self.admin),
            _ => Reply::status(StatusCode::METHOD_NOT_ALLOWED, "GET it\n"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
