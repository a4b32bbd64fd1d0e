//! What `osier-pilot` can be told: every flag is also an environment variable.
//!
//! The few knobs here are the whole of it; mesh behaviour belongs in the mesh configuration (ConfigMap `istio`), not in flags.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use ipnet::IpNet;

use crate::model::DEFAULT_CLUSTER_DOMAIN;
use crate::program::LOG;

/// The control plane of Osier: reads Kubernetes and Istio resources from an API server or a folder and serves them to proxies as
/// xDS v3.
#[derive(Parser, Debug, Clone)]
#[command(name = "osier-pilot", version, after_help = EXAMPLES)]
pub struct Settings {
    /// Folder of YAML to read instead of an API server; it is watched and read again when a file changes.
    #[arg(long, env = "OSIER_PILOT_SOURCE", value_name = "DIR")]
    pub source: Option<PathBuf>,

    /// The cluster that it belongs to.
    #[command(flatten)]
    pub cluster: Cluster,

    /// Address to serve xDS (gRPC, plaintext) on.
    #[arg(long, env = "OSIER_PILOT_XDS_ADDRESS", value_name = "IP:PORT", default_value = "127.0.0.1:15010")]
    pub xds_address: SocketAddr,

    /// Address to serve /metrics, /ready and /debug on.
    #[arg(
        long,
        env = "OSIER_PILOT_MONITORING_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:15014"
    )]
    pub monitoring_address: SocketAddr,

    /// Address to change log levels at; loopback only. [default: 127.0.0.1:9876 beside an API server, none for a folder]
    #[arg(long, env = "OSIER_PILOT_ADMIN_ADDRESS", value_name = "IP:PORT", value_parser = loopback)]
    pub admin_address: Option<SocketAddr>,

    /// Address to serve the webhooks on (TLS): injection and validation. Only beside an API server; without it there are none.
    #[arg(long, env = "OSIER_PILOT_WEBHOOK_ADDRESS", value_name = "IP:PORT", conflicts_with = "source")]
    pub webhook_address: Option<SocketAddr>,

    /// Address to serve xDS over TLS on, to clients that say by a token of their service account who they are: gateways get their
    /// certificates there alone. Only beside an API server.
    #[arg(long, env = "OSIER_PILOT_ENCRYPTED_XDS_ADDRESS", value_name = "IP:PORT")]
    pub encrypted_xds_address: Option<SocketAddr>,

    /// File that keeps the workloads which registered themselves over a restart. Without it they have to register again first.
    #[arg(long, env = "OSIER_PILOT_STATE_FILE", value_name = "FILE")]
    pub state_file: Option<PathBuf>,

    /// Push when nothing has changed for this long. Changes of endpoints alone wait a fifth of it.
    #[arg(long, env = "PILOT_DEBOUNCE_AFTER", value_name = "TIME", default_value = "50ms", value_parser = duration)]
    pub debounce_after: Duration,

    /// Push at the latest when the first change is this old.
    #[arg(long, env = "PILOT_DEBOUNCE_MAX", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub debounce_max: Duration,

    /// Ask clients to connect again after this time, give or take a tenth, so that they spread over replicas; 0s never does.
    #[arg(long, env = "OSIER_PILOT_MAX_CONNECTION_AGE", value_name = "TIME", default_value = "30m", value_parser = duration)]
    pub max_connection_age: Duration,

    /// With --source: folder with the certificate authority of the mesh and the key of its tokens, for this user alone; made where it
    /// is missing. Needed for --encrypted-xds-address.
    #[arg(long, env = "OSIER_PILOT_IDENTITY_FOLDER", value_name = "DIR", requires = "encrypted_xds_address")]
    pub identity_folder: Option<PathBuf>,

    /// Fetch the key sets of RequestAuthentications anew after this time.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", value_name = "TIME", default_value = "20m", value_parser = refresh)]
    pub jwks_refresh: Duration,

    /// Addresses that no key set is fetched from, whatever its URI says: ranges with commas between them. Instance metadata of clouds
    /// is among them unless this says otherwise.
    #[arg(
        long,
        env = "BLOCKED_CIDRS_IN_JWKS_URIS",
        value_name = "CIDRS",
        default_value = LINK_LOCAL,
        value_parser = ranges
    )]
    pub jwks_blocked: Ranges,

    /// After SIGTERM, go on for this time before anything is closed: it takes a moment until nobody is sent here any more.
    #[arg(long, env = "OSIER_PILOT_SHUTDOWN_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub shutdown_delay: Duration,

    /// How many proxies are pushed to at the same time. [default: 15 + 5 for each core, 100 at most]
    #[arg(long, env = "PILOT_PUSH_THROTTLE", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub push_throttle: Option<u16>,

    /// What to log: a level (off, error, warning, info, debug, trace), with exceptions per part: `info,xds=debug`.
    #[arg(long, env = "OSIER_PILOT_LOG", value_name = "LEVELS", default_value = "info", value_parser = levels)]
    pub log: String,

    /// Log JSON, one object a line.
    #[arg(long, env = "OSIER_PILOT_LOG_JSON")]
    pub log_json: bool,
}

/// Where the API server is, and as what the control plane lives in its cluster. Without a folder these say what is read.
#[derive(Args, Debug, Clone)]
pub struct Cluster {
    /// File that says how to reach the API server. [default: what the pod gives, else as kubectl]
    #[arg(long, env = "OSIER_PILOT_KUBECONFIG", value_name = "FILE", conflicts_with = "source")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig.
    #[arg(long, env = "OSIER_PILOT_CONTEXT", value_name = "NAME", conflicts_with = "source")]
    pub context: Option<String>,

    /// Namespace of the control plane, where its mesh configuration and its secrets are.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "osier-system")]
    pub namespace: String,

    /// Revision of the control plane: configuration that is labelled `istio.io/rev` for another one is left alone.
    #[arg(long, env = "REVISION", value_name = "NAME", default_value = "default")]
    pub revision: String,

    /// Domain under which Services live.
    #[arg(long, env = "DOMAIN_SUFFIX", value_name = "DOMAIN", default_value = DEFAULT_CLUSTER_DOMAIN)]
    pub cluster_domain: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: "osier-system".into(),
            revision: "default".into(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.into(),
        }
    }
}

/// Where nobody's keys are, and credentials of the machine may be.
const LINK_LOCAL: &str = "169.254.0.0/16,fe80::/10,fd00:ec2::254/128";

/// Ranges of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges(pub Vec<IpNet>);

/// Port of istiod's interface for the same.
pub const ADMIN_PORT: u16 = 9876;

const EXAMPLES: &str = "\
Examples:
  osier-pilot
  osier-pilot --kubeconfig ~/.kube/config
  osier-pilot --source ./mesh
  osier-pilot --source ./mesh --xds-address 0.0.0.0:15010 --monitoring-address 0.0.0.0:15014
  OSIER_PILOT_SOURCE=./mesh osier-pilot

The exit status is 2 for wrong usage and 1 for any other failure.";

impl Settings {
    /// Settings for a folder, everything else as by default. Ports are picked free (port 0) on the loopback address.
    pub fn embedded(source: PathBuf) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            source: Some(source),
            cluster: Cluster::default(),
            xds_address: free,
            monitoring_address: free,
            webhook_address: None,
            admin_address: None,
            encrypted_xds_address: None,
            state_file: None,
            debounce_after: Duration::from_millis(50),
            debounce_max: Duration::from_secs(10),
            max_connection_age: Duration::ZERO,
            jwks_refresh: Duration::from_secs(20 * 60),
            jwks_blocked: ranges(LINK_LOCAL).unwrap_or_default(),
            shutdown_delay: Duration::ZERO,
            identity_folder: None,
            push_throttle: None,
            log: "info".into(),
            log_json: false,
        }
    }

    /// Where log levels are changed, if anywhere. Several may read folders on one machine; of those in pods each has its own loopback.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        let default = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
        self.admin_address.or_else(|| self.source.is_none().then_some(default))
    }

    /// Number of concurrent pushes: as told, or istiod's formula.
    pub fn concurrent_pushes(&self) -> usize {
        match self.push_throttle {
            Some(n) => usize::from(n),
            None => {
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
                (15 + 5 * cores).min(100)
            }
        }
    }
}

/// Parses `250ms`, `5s`, `1m`: one number and one unit, which is all that a flag needs.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a time such as 100ms or 5s"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("`{text}` needs a unit: ms, s or m")),
    }
}

/// A duration that isn't zero.
fn refresh(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        refresh => Ok(refresh),
    }
}

/// Parses `10.0.0.0/8,fd00::/8`; nothing is no range.
fn ranges(text: &str) -> Result<Ranges, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let range = |part: &str| {
        let net = part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| format!("`{part}` is no range of addresses such as 10.0.0.0/8"))
    };
    parts.map(range).collect::<Result<_, _>>().map(Ranges)
}

/// The interface has no password.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "is not IP:PORT".to_owned())?;
    match address.ip().to_canonical().is_loopback() {
        true => Ok(address),
        false => Err("must be a loopback address, since everybody who reaches it may use it".into()),
    }
}

/// Refuses what can't be logged.
fn levels(text: &str) -> Result<String, String> {
    LOG.levels(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Settings, clap::Error> {
        Settings::try_parse_from([&["osier-pilot"], args].concat())
    }

    #[test]
    fn defaults_are_the_documented_ports() {
        let s = parse(&["--source", "/tmp/mesh"]).unwrap();
        assert_eq!(s.xds_address.to_string(), "127.0.0.1:15010");
        assert_eq!(s.monitoring_address.to_string(), "127.0.0.1:15014");
        assert_eq!(s.debounce_after, Duration::from_millis(50));
        assert_eq!(s.debounce_max, Duration::from_secs(10));
        assert_eq!(s.jwks_refresh, Duration::from_secs(1200));
        assert!(s.jwks_blocked.0.iter().any(|net| net.contains(&IpAddr::from([169, 254, 169, 254]))));
        assert!(s.concurrent_pushes() >= 20 && s.concurrent_pushes() <= 100);
    }

    #[test]
    fn wrong_usage_is_exit_status_2() {
        for args in [
            &["--source"][..],
            &["--sources", "x"],
            &["--source", "x", "--xds-address", "15010"],
            &["--source", "x", "--debounce-after", "100"],
            &["--source", "x", "--debounce-after", "ms"],
            &["--source", "x", "--jwks-refresh", "0s"],
            &["--source", "x", "--jwks-blocked", "10.0.0.0/33"],
            &["--source", "x", "--push-throttle", "0"],
            &["--source", "x", "--log", "xds=what"],
            &["--source", "x", "--log", "nothing=debug"],
            &["--source", "x", "--admin-address", "0.0.0.0:9876"],
        ] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        use clap::CommandFactory;
        for arg in Settings::command().get_arguments() {
            if ["help", "version"].contains(&arg.get_id().as_str()) {
                continue;
            }
            assert!(arg.get_env().is_some(), "--{} has no environment variable", arg.get_id());
        }
    }

    #[test]
    fn the_admin_interface_is_there_beside_an_api_server() {
        let of = |args: &[&str]| parse(args).unwrap().admin_address().map(|address| address.to_string());
        assert_eq!(of(&[]).as_deref(), Some("127.0.0.1:9876"));
        assert_eq!(of(&["--source", "x"]), None);
        assert_eq!(of(&["--source", "x", "--admin-address", "127.0.0.1:1"]).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(Settings::embedded("x".into()).admin_address(), None);
    }

    #[test]
    fn levels_are_those_of_parts_and_targets() {
        for text in ["debug", "info,xds=debug", "warning,osier_pilot::store=trace", "info,webhook:off"] {
            assert!(parse(&["--source", "x", "--log", text]).is_ok(), "{text}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("1h").is_err());
        assert!(duration("-1s").is_err());
    }
}
