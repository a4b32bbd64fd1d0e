//! What is to be captured, checked: every mistake is reported, with its flag and value.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use super::flags::Flags;
use crate::settings::Mistakes;
use crate::settings::environment::Environment;

/// What is to be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Port of the sidecar for outbound connections.
    pub outbound_port: u16,
    /// Port of the sidecar for inbound connections.
    pub inbound_port: u16,
    /// Port of tunnelled inbound connections.
    pub tunnel_port: u16,
    /// Users whose own connections are the sidecar's.
    pub uids: Vec<u32>,
    /// Groups whose own connections are the sidecar's.
    pub gids: Vec<u32>,
    /// How inbound connections are turned.
    pub mode: Mode,
    /// Mark of packets that belong to the sidecar, in mode TPROXY.
    pub mark: u32,
    /// Routing table that takes marked packets in.
    pub table: u32,
    /// Captured destinations; `None` is all.
    pub include: Option<Vec<IpNet>>,
    /// Destinations that are not captured.
    pub exclude: Vec<IpNet>,
    /// Captured inbound ports; `None` is all.
    pub inbound: Option<Vec<u16>>,
    /// Inbound ports that are not captured, where all others are.
    pub inbound_exclude: Vec<u16>,
    /// Outbound ports that are not captured.
    pub outbound_exclude: Vec<u16>,
    /// Outbound ports that are captured whatever the destination.
    pub outbound_include: Vec<u16>,
    /// Interfaces whose incoming traffic counts as outbound.
    pub virtual_interfaces: Vec<String>,
    /// Interfaces on which nothing is captured.
    pub excluded_interfaces: Vec<String>,
    /// Groups whose traffic is captured.
    pub owners: Owners,
    /// DNS servers whose queries are turned; `None` is no capture of DNS.
    pub dns: Option<DnsServers>,
    /// Drop packets that belong to no connection.
    pub drop_invalid: bool,
    /// What is loopback in IPv4.
    pub loopback: Ipv4Net,
    /// There are rules for IPv6.
    pub ipv6: bool,
}

/// How inbound connections are turned to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By changing their destination.
    Redirect,
    /// By handing them to a transparent socket; source and destination stay.
    Tproxy,
}

/// Groups of processes whose outbound traffic is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owners {
    /// Everybody's.
    All,
    /// Theirs alone.
    Only(Vec<u32>),
    /// Everybody's but theirs.
    Except(Vec<u32>),
}

/// DNS servers whose queries are turned to the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsServers {
    /// All.
    Any,
    /// Those that the pod asks.
    These(Vec<IpAddr>),
}

/// Where the pod's DNS servers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The interfaces' IPv6 addresses; not there where the kernel has no IPv6.
pub(super) const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";

impl Capture {
    /// Checks what was said, with `environment` for what only variables say.
    pub fn check(flags: &Flags, environment: &Environment) -> Result<Self, Mistakes> {
        Self::check_in(flags, environment, Path::new(RESOLV_CONF), has_ipv6(Path::new(IPV6_ADDRESSES)))
    }

    fn check_in(
        flags: &Flags,
        environment: &Environment,
        resolv_conf: &Path,
        has_ipv6: bool,
    ) -> Result<Self, Mistakes> {
        let mut check = Check { environment, mistakes: Vec::new() };
        let uids = check.numbers("--proxy-uid", &flags.proxy_uid, "a user id");
        let gids = match &flags.proxy_gid {
            Some(text) => check.numbers("--proxy-gid", text, "a group id"),
            None => uids.clone(),
        };
        if uids.is_empty() && gids.is_empty() {
            check.mistakes.push(
                "--proxy-uid and --proxy-gid name nobody: the sidecar's own traffic would come back to it"
                    .to_owned(),
            );
        }
        let all_dns = flags.capture_all_dns || check.switch("CAPTURE_ALL_DNS");
        let wants_dns = flags.redirect_dns || check.switch("ISTIO_META_DNS_CAPTURE") || all_dns;
        let capture = Self {
            outbound_port: check.port("--envoy-port", &flags.outbound_port),
            inbound_port: check.port("--inbound-capture-port", &flags.inbound_port),
            tunnel_port: check.port("--inbound-tunnel-port", &flags.tunnel_port),
            uids,
            gids,
            mode: check.mode(&flags.mode),
            mark: check.number("--istio-inbound-tproxy-mark", &flags.tproxy_mark),
            table: check.number("--istio-inbound-tproxy-route-table", &flags.tproxy_table),
            include: check.wildcard("--istio-service-cidr", &flags.include_ranges, Check::ranges),
            exclude: check.ranges("--istio-service-exclude-cidr", &flags.exclude_ranges),
            inbound: check.wildcard("--istio-inbound-ports", &flags.inbound_ports, Check::ports),
            inbound_exclude: check.ports("--istio-local-exclude-ports", &flags.inbound_exclude_ports),
            outbound_exclude: check
                .ports("--istio-local-outbound-ports-exclude", &flags.outbound_exclude_ports),
            outbound_include: check.ports("--istio-outbound-ports", &flags.outbound_ports),
            virtual_interfaces: check.interfaces("--kube-virt-interfaces", &flags.kube_virt_interfaces),
            excluded_interfaces: check.interfaces("--istio-exclude-interfaces", &flags.exclude_interfaces),
            owners: check.owners(),
            dns: wants_dns.then(|| check.dns_servers(all_dns, resolv_conf)),
            drop_invalid: flags.drop_invalid || check.switch("INVALID_DROP"),
            loopback: check.loopback(),
            ipv6: flags.dual_stack || check.switch("ISTIO_DUAL_STACK") || has_ipv6,
        };
        if check.mistakes.is_empty() { Ok(capture) } else { Err(Mistakes(check.mistakes)) }
    }
}

/// True where an interface has an IPv6 address by which others reach it.
fn has_ipv6(addresses: &Path) -> bool {
    // Fields: address, index, prefix length, scope, flags, name. Scope 00 is global (unique local ones too), 40 is site.
    let text = std::fs::read_to_string(addresses).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split_whitespace();
        // `::6` is what an earlier run has added.
        fields.next() != Some("00000000000000000000000000000006")
            && matches!(fields.nth(2), Some("00" | "40"))
    })
}

/// Turns words to values and gathers mistakes.
struct Check<'e> {
    environment: &'e Environment,
    mistakes: Vec<String>,
}

impl Check<'_> {
    fn items(text: &str) -> impl Iterator<Item = &str> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty())
    }

    /// The items of a list, each once, as `parse` understands them.
    fn list<T: PartialEq>(
        &mut self,
        name: &str,
        text: &str,
        what: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for item in Self::items(text) {
            match parse(item) {
                Some(value) if !found.contains(&value) => found.push(value),
                Some(_) => {}
                None => self.mistakes.push(format!("{name}: `{item}` is not {what}")),
            }
        }
        found
    }

    fn ports(&mut self, name: &str, text: &str) -> Vec<u16> {
        self.list(name, text, "a port (1 to 65535)", |item| item.parse().ok().filter(|port| *port > 0))
    }

    fn port(&mut self, name: &str, text: &str) -> u16 {
        let port = text.trim().parse().ok().filter(|port| *port > 0);
        port.unwrap_or_else(|| {
            self.mistakes.push(format!("{name}: `{text}` is not a port (1 to 65535)"));
            0
        })
    }

    fn numbers(&mut self, name: &str, text: &str, what: &str) -> Vec<u32> {
        self.list(name, text, what, |item| item.parse().ok())
    }

    fn ranges(&mut self, name: &str, text: &str) -> Vec<IpNet> {
        self.list(name, text, "a network (10.0.0.0/8) or an address", range)
    }

    fn interfaces(&mut self, name: &str, text: &str) -> Vec<String> {
        self.list(name, text, "the name of an interface", |item| {
            osier_core::sidecar::is_interface(item).then(|| item.to_owned())
        })
    }

    /// `*` alone is everything.
    fn wildcard<T>(
        &mut self,
        name: &str,
        text: &str,
        list: fn(&mut Self, &str, &str) -> Vec<T>,
    ) -> Option<Vec<T>> {
        if text.trim() == "*" {
            return None;
        }
        if Self::items(text).any(|item| item == "*") {
            self.mistakes.push(format!("{name}: `{text}`: `*` stands alone"));
            return None;
        }
        Some(list(self, name, text))
    }

    fn number(&mut self, name: &str, text: &str) -> u32 {
        let number = text.trim().parse().ok().filter(|number| *number > 0);
        number.unwrap_or_else(|| {
            self.mistakes.push(format!("{name}: `{text}` is not a number above 0"));
            0
        })
    }

    fn mode(&mut self, text: &str) -> Mode {
        match text {
            "REDIRECT" => Mode::Redirect,
            "TPROXY" => Mode::Tproxy,
            other => {
                let name = "--istio-inbound-interception-mode";
                self.mistakes.push(format!(
                    "{name}: `{other}` is neither REDIRECT nor TPROXY (NONE needs no rules: leave `init` out)"
                ));
                Mode::Redirect
            }
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.variables.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    fn switch(&mut self, name: &str) -> bool {
        match self.variable(name).map(|text| (text.to_ascii_lowercase(), text)) {
            None => false,
            Some((text, _)) if text == "true" || text == "1" => true,
            Some((text, _)) if text == "false" || text == "0" => false,
            Some((_, text)) => {
                let mistake = format!("{name}: `{text}` is neither true nor false");
                self.mistakes.push(mistake);
                false
            }
        }
    }

    fn owners(&mut self) -> Owners {
        let (only, except) = ("ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE");
        let included = self.variable(only).filter(|text| *text != "*").map(str::to_owned);
        let excluded = self.variable(except).map(str::to_owned);
        match (included, excluded) {
            (None, None) => Owners::All,
            (Some(text), None) => Owners::Only(self.list(only, &text, "a group of this machine", group)),
            (None, Some(text)) => Owners::Except(self.list(except, &text, "a group of this machine", group)),
            (Some(_), Some(_)) => {
                self.mistakes.push(format!("{only} and {except} exclude each other"));
                Owners::All
            }
        }
    }

    fn dns_servers(&mut self, all: bool, file: &Path) -> DnsServers {
        if all {
            return DnsServers::Any;
        }
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                self.mistakes
                    .push(format!("{}: {error}; --capture-all-dns needs no list of servers", file.display()));
                return DnsServers::Any;
            }
        };
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        // A zone (`fe80::1%eth0`) says by which interface; the address is what is in the packet.
        let address = |rest: &str| rest.trim().split('%').next()?.parse::<IpAddr>().ok();
        DnsServers::These(servers.filter_map(address).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn loopback(&mut self) -> Ipv4Net {
        let name = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
        let text = self.variable(name).unwrap_or("127.0.0.1/32").to_owned();
        match range(&text) {
            Some(IpNet::V4(net)) if net.addr().is_loopback() => net,
            _ => {
                self.mistakes.push(format!("{name}: `{text}` is not a network in 127.0.0.0/8"));
                Ipv4Net::default()
            }
        }
    }
}

/// A network, or an address as a network of one; bits beyond the prefix are cut.
fn range(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

/// A group by number or name.
fn group(text: &str) -> Option<u32> {
    let by_name = || nix::unistd::Group::from_name(text).ok().flatten().map(|group| group.gid.as_raw());
    text.parse().ok().or_else(by_name)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        flags: Flags,
    }

    pub(in crate::capture) fn flags(words: &str) -> Flags {
        let words = words.split(' ').filter(|word| !word.is_empty());
        // `''` stands for an empty word.
        let words = words.map(|word| if word == "''" { "" } else { word });
        Words::try_parse_from(std::iter::once("init").chain(words)).expect("flags").flags
    }

    /// The plan of these flags and variables in a pod with these servers.
    pub(in crate::capture) fn plan(
        words: &str,
        variables: &[(&str, &str)],
        ipv6: bool,
    ) -> Result<Capture, String> {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, "search a b\nnameserver 10.96.0.10\nnameserver fd00::10%eth0\n").expect("file");
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let environment = Environment { variables, labels_file: "/nonexistent".into() };
        Capture::check_in(&flags(words), &environment, &file, ipv6).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn what_injection_says_is_understood() {
        let words = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020";
        let capture = plan(words, &[], false).expect("a plan");
        assert_eq!((capture.outbound_port, capture.inbound_port, capture.tunnel_port), (15001, 15006, 15008));
        assert_eq!((capture.uids, capture.gids), (vec![1337], vec![1337]));
        assert_eq!((capture.include, capture.inbound), (None, None));
        assert_eq!(capture.inbound_exclude, [15090, 15021, 15020]);
        assert_eq!((capture.mode, capture.dns, capture.ipv6), (Mode::Redirect, None, false));
        let words = "-i 10.1.2.3/8,fd00::/8,192.0.2.1 -x 10.5.0.0/16 -b '' -q 80,443,80 -o 25 -k net1 -c net2,net3 -m TPROXY";
        let variables = [
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("INVALID_DROP", "True"),
            ("ISTIO_DUAL_STACK", "true"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "root,202"),
        ];
        let capture = plan(words, &variables, false).expect("a plan");
        let ranges: Vec<String> = capture.include.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
        assert_eq!(capture.inbound, Some(vec![]));
        assert_eq!((capture.outbound_include, capture.outbound_exclude), (vec![80, 443], vec![25]));
        assert_eq!(capture.mode, Mode::Tproxy);
        assert_eq!((capture.mark, capture.table), (1337, 133));
        assert_eq!(capture.owners, Owners::Except(vec![0, 202]));
        let servers = ["10.96.0.10", "fd00::10"].map(|text| text.parse().expect("address"));
        assert_eq!(capture.dns, Some(DnsServers::These(servers.to_vec())));
        assert!(capture.drop_invalid && capture.ipv6);
        let all = plan("--capture-all-dns", &[], true).expect("a plan");
        assert_eq!((all.dns, all.ipv6), (Some(DnsServers::Any), true));
    }

    #[test]
    fn every_mistake_is_named() {
        let words = "-p 0 -z x -u root -m NONE -i 10.0.0.0/33,* -x here -d 80,http -o 70000 -k a/b -t 0";
        let variables = [
            ("INVALID_DROP", "perhaps"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "nobody-has-this-group"),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8"),
        ];
        let text = plan(words, &variables, false).expect_err("wrong");
        for expected in [
            "--envoy-port: `0` is not a port",
            "--inbound-capture-port: `x` is not a port",
            "--proxy-uid: `root` is not a user id",
            "--proxy-uid and --proxy-gid name nobody",
            "--istio-inbound-interception-mode: `NONE` is neither",
            "--istio-service-cidr: `10.0.0.0/33,*`: `*` stands alone",
            "--istio-service-exclude-cidr: `here` is not a network",
            "--istio-local-exclude-ports: `http` is not a port",
            "--istio-local-outbound-ports-exclude: `70000` is not a port",
            "--kube-virt-interfaces: `a/b` is not the name of an interface",
            "--istio-inbound-tproxy-mark: `0` is not a number above 0",
            "INVALID_DROP: `perhaps` is neither true nor false",
            "ISTIO_OUTBOUND_OWNER_GROUPS: `nobody-has-this-group` is not a group",
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: `10.0.0.0/8` is not a network in 127",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        assert_eq!(text.lines().count(), 14, "{text}");
    }

    #[test]
    fn a_pod_has_ipv6_when_others_can_reach_it_by_it() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("if_inet6");
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let ours = "00000000000000000000000000000006 01 80 00 80       lo\n";
        let link = "fe800000000000000042acfffe110002 2a 40 20 80     eth0\n";
        let local = "fd000000000000000000000000000007 2a 40 00 80     eth0\n";
        for (lines, expected) in [
            ([loopback, link].concat(), false),
            ([loopback, ours, link].concat(), false),
            ([loopback, link, local].concat(), true),
        ] {
            std::fs::write(&file, &lines).expect("file");
            assert_eq!(has_ipv6(&file), expected, "{lines}");
        }
        assert!(!has_ipv6(Path::new("/nonexistent")));
    }
}
