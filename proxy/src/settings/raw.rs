//! What can be told on the command line, word for word; every flag is an environment variable too.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::agent;
use crate::capture;
use crate::status::tools;

/// The data plane of Osier: a proxy that is configured over xDS v3 or by an Envoy bootstrap file.
#[derive(Parser, Debug, Clone)]
#[command(name = "osier-proxy", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Raw {
    /// Envoy bootstrap file (YAML or JSON): static resources, ADS, or both.
    #[arg(long, env = "OSIER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Everything that holds for all modes.
    #[command(flatten)]
    pub options: Options,

    /// Another mode than `--config`.
    #[command(subcommand)]
    pub mode: Option<RawMode>,
}

/// A mode that takes its configuration from elsewhere than a file, or a tool for pods.
#[derive(Subcommand, Debug, Clone)]
pub enum RawMode {
    /// Stands beside an application. Identity comes from the environment, as Istio's injection sets it: POD_NAME,
    /// POD_NAMESPACE, INSTANCE_IP, ISTIO_META_*, ISTIO_METAJSON_*, PROXY_CONFIG.
    Sidecar(RawSidecar),

    /// Stands at the edge and takes clients in from outside. Identity comes from the environment, as for `sidecar`; what it listens on,
    /// the control plane says.
    Gateway(RawGateway),

    /// Gets the workload's certificate for an Envoy or a gRPC application beside it: over SDS on a Unix domain socket, and as files
    /// where a folder is given. Carries nobody's traffic.
    Agent(agent::flags::Flags),

    /// Something that ends when it is done.
    #[command(flatten)]
    Tool(Tool),
}

/// What a pod calls beside its sidecar.
#[derive(Subcommand, Debug, Clone)]
pub enum Tool {
    /// Sets the rules that turn a pod's traffic to its sidecar. Needs NET_ADMIN and NET_RAW, and nft or iptables.
    Init(Box<capture::flags::Flags>),

    /// Asks the sidecar of this pod: `request --debug-port=15020 POST drain`.
    Request(tools::RequestFlags),

    /// Returns when the sidecar of this pod is ready.
    Wait(tools::WaitFlags),
}

/// Flags of `sidecar`.
#[derive(Args, Debug, Clone)]
pub struct RawSidecar {
    /// The control plane's xDS address [default: discoveryAddress of PROXY_CONFIG].
    #[arg(long, env = "OSIER_PILOT_ADDRESS", value_name = "HOST:PORT")]
    pub pilot_address: Option<String>,

    /// How the control plane is known, and this proxy to it.
    #[command(flatten)]
    pub trust: Trust,

    /// Where the names in use are kept, to be asked for at once at the next start.
    #[arg(long, env = "OSIER_STATE_FILE", value_name = "FILE")]
    pub state_file: Option<PathBuf>,

    /// Everything that holds for all modes.
    #[command(flatten)]
    pub options: Options,
}

/// How control plane and proxy know each other.
#[derive(Args, Debug, Clone)]
pub struct Trust {
    /// File of root certificates by which the control plane is known. With it the xDS stream is encrypted, and this proxy gets a
    /// certificate of the mesh; without it there is neither, and no TLS.
    #[arg(long, env = "XDS_ROOT_CA", value_name = "FILE")]
    pub pilot_root_file: Option<PathBuf>,

    /// File of the token that says to the control plane who this is [default: /var/run/secrets/tokens/istio-token].
    #[arg(long, env = "OSIER_TOKEN_FILE", value_name = "FILE", requires = "pilot_root_file")]
    pub token_file: Option<PathBuf>,
}

/// Flags of `gateway`.
#[derive(Args, Debug, Clone)]
pub struct RawGateway {
    /// The control plane's xDS address [default: discoveryAddress of PROXY_CONFIG].
    #[arg(long, env = "OSIER_PILOT_ADDRESS", value_name = "HOST:PORT")]
    pub pilot_address: Option<String>,

    /// How the control plane is known, and this proxy to it.
    #[command(flatten)]
    pub trust: Trust,

    /// Everything that holds for all modes.
    #[command(flatten)]
    pub options: Options,
}

/// Flags of all modes.
#[derive(Args, Debug, Clone, Default)]
pub struct Options {
    /// Loopback address of the admin interface [default: the bootstrap's; for a sidecar or gateway 127.0.0.1:15000].
    #[arg(long, env = "OSIER_ADMIN_ADDRESS", value_name = "IP:PORT")]
    pub admin_address: Option<SocketAddr>,

    /// Address that answers /healthz/ready [default: none; for a sidecar or gateway port 15021 of all addresses].
    #[arg(long, env = "OSIER_READINESS_ADDRESS", value_name = "IP:PORT")]
    pub readiness_address: Option<SocketAddr>,

    /// Worker threads [default: the CPU limit, rounded up].
    #[arg(long, env = "OSIER_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: Option<u16>,

    /// Connections from clients at a time; one more is closed at once [default: half of the files that the process may have open].
    #[arg(long, env = "OSIER_MAX_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_connections: Option<u64>,

    /// What to log on standard error: a level (off, error, warning, info, debug, trace), with exceptions per part:
    /// `info,http=debug`.
    #[arg(long, env = "OSIER_LOG_LEVEL", value_name = "LEVELS", default_value = "info")]
    pub log_level: String,

    /// Log one JSON object a line.
    #[arg(long, env = "OSIER_LOG_JSON")]
    pub log_json: bool,

    /// How long to drain after SIGTERM [default: terminationDrainDuration of PROXY_CONFIG, else 5s].
    #[arg(long, env = "OSIER_DRAIN_TIME", value_name = "DURATION")]
    pub drain_time: Option<String>,

    /// Tell the client of a request that is denied which policy denied it, in the header x-osier-denied-by. For finding out: names
    /// of policies are nobody else's business.
    #[arg(long, env = "OSIER_NAME_DENYING_POLICY")]
    pub name_denying_policy: bool,

    /// Where a port takes mutual TLS and plaintext and its server speaks first, serve clients that say nothing in plaintext; false
    /// waits for their first byte.
    #[arg(long, env = "OSIER_SERVER_FIRST", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub server_first: bool,
}

const EXAMPLES: &str = "\
Examples:
  osier-proxy --config envoy.yaml
  osier-proxy --config envoy.yaml --concurrency 2 --log-level info,http=debug
  POD_NAME=a-1 INSTANCE_IP=10.0.0.7 osier-proxy sidecar --pilot-address 127.0.0.1:15010
  POD_NAME=g-1 INSTANCE_IP=10.0.0.8 osier-proxy gateway --pilot-address 127.0.0.1:15010
  osier-proxy agent --pilot-address pilot:15012 --pilot-root-file root.pem --folder /dev/shm/certificates

Exit status: 0 after a drain, 2 for wrong usage or configuration, 1 for any other failure.";
