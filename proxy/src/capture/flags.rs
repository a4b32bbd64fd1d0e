//! The words of `osier-proxy init`, under the names that Istio's injection templates use.

use clap::{Args, ValueEnum};

/// Flags of `init`. Lists are separated by commas.
#[derive(Args, Debug, Clone)]
pub struct Flags {
    /// Port of the sidecar for outbound connections.
    #[arg(short = 'p', long = "envoy-port", value_name = "PORT", default_value = "15001")]
    pub outbound_port: String,

    /// Port of the sidecar for inbound connections.
    #[arg(short = 'z', long = "inbound-capture-port", value_name = "PORT", default_value = "15006")]
    pub inbound_port: String,

    /// Port of tunnelled inbound connections, which are never turned.
    #[arg(short = 'e', long = "inbound-tunnel-port", value_name = "PORT", default_value = "15008")]
    pub tunnel_port: String,

    /// Users whose own connections are the sidecar's.
    #[arg(short = 'u', long, value_name = "UIDS", default_value = "1337")]
    pub proxy_uid: String,

    /// Groups whose own connections are the sidecar's [default: as --proxy-uid].
    #[arg(short = 'g', long, value_name = "GIDS")]
    pub proxy_gid: Option<String>,

    /// How inbound connections are turned: REDIRECT or TPROXY.
    #[arg(
        short = 'm',
        long = "istio-inbound-interception-mode",
        value_name = "MODE",
        default_value = "REDIRECT"
    )]
    pub mode: String,

    /// Destinations that are captured: `*`, or networks.
    #[arg(short = 'i', long = "istio-service-cidr", value_name = "NETWORKS", default_value = "*")]
    pub include_ranges: String,

    /// Destinations that are not captured.
    #[arg(short = 'x', long = "istio-service-exclude-cidr", value_name = "NETWORKS", default_value = "")]
    pub exclude_ranges: String,

    /// Inbound ports that are captured: `*`, ports, or nothing.
    #[arg(short = 'b', long = "istio-inbound-ports", value_name = "PORTS", default_value = "*")]
    pub inbound_ports: String,

    /// Inbound ports that are not captured, where all others are.
    #[arg(short = 'd', long = "istio-local-exclude-ports", value_name = "PORTS", default_value = "")]
    pub inbound_exclude_ports: String,

    /// Outbound ports that are not captured.
    #[arg(
        short = 'o',
        long = "istio-local-outbound-ports-exclude",
        value_name = "PORTS",
        default_value = ""
    )]
    pub outbound_exclude_ports: String,

    /// Outbound ports that are captured whatever the destination.
    #[arg(short = 'q', long = "istio-outbound-ports", value_name = "PORTS", default_value = "")]
    pub outbound_ports: String,

    /// Interfaces (of virtual machines in the pod) whose incoming traffic counts as outbound.
    #[arg(short = 'k', long, value_name = "INTERFACES", default_value = "")]
    pub kube_virt_interfaces: String,

    /// Interfaces on which nothing is captured.
    #[arg(short = 'c', long = "istio-exclude-interfaces", value_name = "INTERFACES", default_value = "")]
    pub exclude_interfaces: String,

    /// Mark of connections in mode TPROXY.
    #[arg(short = 't', long = "istio-inbound-tproxy-mark", value_name = "MARK", default_value = "1337")]
    pub tproxy_mark: String,

    /// Routing table of mode TPROXY.
    #[arg(
        short = 'r',
        long = "istio-inbound-tproxy-route-table",
        value_name = "TABLE",
        default_value = "133"
    )]
    pub tproxy_table: String,

    /// Turn DNS queries to the sidecar, too [environment: ISTIO_META_DNS_CAPTURE].
    #[arg(long)]
    pub redirect_dns: bool,

    /// Turn DNS queries to any server, not only to those of /etc/resolv.conf [environment: CAPTURE_ALL_DNS].
    #[arg(long)]
    pub capture_all_dns: bool,

    /// Drop packets that belong to no connection [environment: INVALID_DROP].
    #[arg(long)]
    pub drop_invalid: bool,

    /// Rules for IPv6 although the pod has no IPv6 address yet [environment: ISTIO_DUAL_STACK].
    #[arg(long)]
    pub dual_stack: bool,

    /// What the rules are set with.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,

    /// Print what would be set, and set nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Remove all that any run has set.
    #[arg(long, alias = "cleanup-only")]
    pub clean: bool,
}

/// What rules are set with.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The first that works: nft, then iptables.
    Auto,
    /// nft, in tables of family inet.
    Nft,
    /// iptables over nf_tables.
    IptablesNft,
    /// iptables with its own tables.
    IptablesLegacy,
    /// Whatever is called iptables.
    Iptables,
}
