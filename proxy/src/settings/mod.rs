//! What the process was told, in two stages: words ([`raw`]), and one checked value without doubts ([`Settings`]).
//!
//! Checking goes through everything and reports all mistakes together, each with the name of the flag, variable or field.

pub mod environment;
pub mod raw;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use osier_core::duration;
use osier_core::logging::Levels;

use crate::bootstrap::{self, Bootstrap, XdsTarget, XdsTls};
use crate::dns;
use crate::status::READINESS_PORT;
use crate::status::probers::Probers;
use crate::status::scrape::Scrape;
use crate::worker;
use environment::{Environment, Identity, Role};
use raw::{Options, Raw, RawGateway, RawMode, RawSidecar, Trust};

/// Istio's `terminationDrainDuration`.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Where injection mounts the token that is made for the control plane.
const TOKEN_FILE: &str = "/var/run/secrets/tokens/istio-token";

/// Everything that the process goes by.
#[derive(Debug)]
pub struct Settings {
    /// Where configuration comes from.
    pub bootstrap: Bootstrap,
    /// `sidecar`: with what beside the bootstrap.
    pub sidecar: Option<SidecarSettings>,
    /// `sidecar` that captures, and `gateway`: the pod that it serves in.
    pub pod: Option<PodSettings>,
    /// `gateway`: clients outside are who is told of a drain.
    pub gateway: bool,
    /// Address of the admin interface; loopback.
    pub admin: Option<SocketAddr>,
    /// Address of the readiness probe.
    pub readiness: Option<SocketAddr>,
    /// Worker threads.
    pub concurrency: usize,
    /// Connections from clients at a time; `None`: by what the system lets the process open.
    pub max_connections: Option<u64>,
    /// What to log.
    pub levels: Levels,
    /// Log as JSON.
    pub log_json: bool,
    /// How to end.
    pub drain: DrainSettings,
    /// A 403 names the policy that denied.
    pub names_policies: bool,
    /// Silent clients of servers that speak first are served in plaintext where that is allowed.
    pub server_first: bool,
}

/// How the traffic of a pod gets to its sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interception {
    /// Not at all: there are no listeners for captured traffic.
    #[default]
    None,
    /// By changing destinations.
    Redirect,
    /// Inbound by transparent sockets, outbound by changing destinations.
    Tproxy,
}

/// What a sidecar or gateway knows of its pod.
#[derive(Debug)]
pub struct PodSettings {
    /// The pod's addresses, of each of its families.
    pub addresses: Vec<IpAddr>,
    /// Port of the status server.
    pub status_port: Option<u16>,
    /// The application's probes.
    pub probers: Probers,
    /// The application's metrics.
    pub scrape: Scrape,
    /// Its DNS queries come here, too.
    pub dns: Option<dns::Settings>,
}

/// What a sidecar has beside its bootstrap.
#[derive(Debug)]
pub struct SidecarSettings {
    /// How it gets traffic.
    pub interception: Interception,
    /// Where names in use are kept.
    pub state_file: Option<PathBuf>,
}

/// How the process ends after SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long connections may finish; at least so long where `until_idle` is set.
    pub time: Duration,
    /// Wait until no connection is open (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`).
    pub until_idle: bool,
}

/// Every mistake that was found.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

impl Settings {
    /// Checks what was said, with `environment` for what only variables say.
    pub fn check(raw: Raw, environment: &Environment) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let settings = match (raw.config, raw.mode) {
            (Some(file), None) => from_file(&file, &raw.options, &mut mistakes),
            (None, Some(RawMode::Sidecar(raw))) => sidecar(raw, environment, &mut mistakes),
            (None, Some(RawMode::Gateway(raw))) => gateway(&raw, environment, &mut mistakes),
            (_, Some(RawMode::Agent(_) | RawMode::Tool(_))) => {
                mistakes.push("neither the agent nor a tool is a proxy".to_owned());
                None
            }
            (Some(_), Some(mode)) => {
                let name = if matches!(mode, RawMode::Gateway(_)) { "gateway" } else { "sidecar" };
                mistakes.push(format!("--config and `{name}` exclude each other (is OSIER_CONFIG set?)"));
                None
            }
            (None, None) => {
                mistakes
                    .push("one of --config FILE, `sidecar` and `gateway` is needed; see --help".to_owned());
                None
            }
        };
        settings.filter(|_| mistakes.is_empty()).ok_or(Mistakes(mistakes))
    }
}

fn from_file(file: &std::path::Path, options: &Options, mistakes: &mut Vec<String>) -> Option<Settings> {
    let bootstrap = bootstrap::load(file).map_err(|error| mistakes.push(error.to_string())).ok();
    let admin = options.admin_address.or(bootstrap.as_ref().and_then(|b| b.admin));
    let drain = DrainSettings { time: DRAIN_TIME, until_idle: false };
    settings(bootstrap, options, admin, options.readiness_address, None, drain, mistakes)
}

fn sidecar(raw: RawSidecar, environment: &Environment, mistakes: &mut Vec<String>) -> Option<Settings> {
    let identity = Identity::read(environment, Role::Sidecar, mistakes);
    let interception = identity.interception;
    let tls = raw.trust.tls();
    let settings = from_environment(identity, raw.pilot_address.as_deref(), tls, &raw.options, mistakes)?;
    let sidecar = SidecarSettings { interception, state_file: raw.state_file };
    Some(Settings { sidecar: Some(sidecar), ..settings })
}

fn gateway(raw: &RawGateway, environment: &Environment, mistakes: &mut Vec<String>) -> Option<Settings> {
    let identity = Identity::read(environment, Role::Gateway, mistakes);
    let tls = raw.trust.tls();
    let settings = from_environment(identity, raw.pilot_address.as_deref(), tls, &raw.options, mistakes)?;
    Some(Settings { gateway: true, ..settings })
}

impl Trust {
    /// What it comes to; `None` where nothing is encrypted.
    pub(crate) fn tls(&self) -> Option<XdsTls> {
        let token = self.token_file.clone().unwrap_or_else(|| TOKEN_FILE.into());
        self.pilot_root_file.clone().map(|roots| XdsTls { roots, token })
    }
}

/// The control plane's address for who is no proxy: as it was said, else as `PROXY_CONFIG` says.
pub(crate) fn pilot_address(
    said: Option<&str>,
    environment: &Environment,
    mistakes: &mut Vec<String>,
) -> Option<XdsTarget> {
    let discovery = environment.proxy_config(mistakes).discovery_address;
    target(said.or(discovery.as_deref()), mistakes)
}

fn target(said: Option<&str>, mistakes: &mut Vec<String>) -> Option<XdsTarget> {
    match said {
        Some(text) => xds_target(text).map_err(|error| mistakes.push(error)).ok(),
        None => {
            mistakes.push("--pilot-address (or discoveryAddress of PROXY_CONFIG) is needed".to_owned());
            None
        }
    }
}

/// What sidecars and gateways have in common.
fn from_environment(
    identity: Identity,
    pilot: Option<&str>,
    tls: Option<XdsTls>,
    options: &Options,
    mistakes: &mut Vec<String>,
) -> Option<Settings> {
    let target = target(pilot.or(identity.proxy_config.discovery_address.as_deref()), mistakes);
    let loopback =
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), identity.proxy_config.admin_port.unwrap_or(15000));
    let anywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), READINESS_PORT);
    let drain = identity.drain(DRAIN_TIME);
    let bootstrap =
        identity.node.zip(target).map(|(node, target)| Bootstrap::for_workload(node, target, tls));
    let settings = settings(
        bootstrap,
        options,
        Some(options.admin_address.unwrap_or(loopback)),
        Some(options.readiness_address.unwrap_or(anywhere)),
        identity.proxy_config.concurrency,
        drain,
        mistakes,
    )?;
    Some(Settings { pod: identity.pod, ..settings })
}

/// `HOST:PORT` or `unix:PATH`.
fn xds_target(text: &str) -> Result<XdsTarget, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(XdsTarget::Unix(path.into()));
    }
    let wrong = || format!("pilot address `{text}` is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(ip) => ip.parse::<IpAddr>().map_err(|_| wrong()).map(|ip| XdsTarget::Tcp(ip.to_string(), port)),
        None if host.is_empty() || host.contains([':', '/']) => Err(wrong()),
        None => Ok(XdsTarget::Tcp(host.to_owned(), port)),
    }
}

/// What all have. Options are checked where there is no bootstrap, too: all mistakes are told at once.
fn settings(
    bootstrap: Option<Bootstrap>,
    options: &Options,
    admin: Option<SocketAddr>,
    readiness: Option<SocketAddr>,
    concurrency: Option<u16>,
    mut drain: DrainSettings,
    mistakes: &mut Vec<String>,
) -> Option<Settings> {
    if let Some(address) = admin.filter(|address| !address.ip().to_canonical().is_loopback()) {
        mistakes
            .push(format!("admin address {address} is not a loopback address, and admin has no password"));
    }
    let levels = options.log_level.parse::<Levels>();
    let levels = levels.map_err(|error| mistakes.push(format!("--log-level: {error}"))).ok();
    if let Some(text) = &options.drain_time {
        match duration::parse(text) {
            Ok(time) => drain.time = time,
            Err(error) => mistakes.push(format!("--drain-time: `{text}` {error}")),
        }
    }
    let concurrency = options.concurrency.or(concurrency).map(usize::from);
    Some(Settings {
        bootstrap: bootstrap?,
        sidecar: None,
        pod: None,
        gateway: false,
        admin,
        readiness,
        concurrency: concurrency.unwrap_or_else(worker::default_count),
        max_connections: options.max_connections,
        levels: levels?,
        log_json: options.log_json,
        drain,
        names_policies: options.name_denying_policy,
        server_first: options.server_first,
    })
}

#[cfg(test)]
mod tests;
