//! The rules themselves, in the words of no tool: which packets, and what becomes of them.
//!
//! The order of `nat` is the order of Istio's. Read [`Capture::rules`]; what each rule is for stands beside it. A rule that names
//! an address holds for that address's family, every other one for both.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::plan::{Capture, DnsServers, Mode, Owners};

/// Where the sidecar's inbound connections to the application come from, so that rules know them.
pub const INBOUND_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 6);
/// The same in IPv6; an address that `init` adds to `lo`.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Where a sidecar connects to see whether that comes back to it; nobody listens there.
pub const SELF_CHECK_PORT: u16 = 15002;

/// Mark of what the sidecar sends to its own pod in mode TPROXY.
const SELF_CALL: u32 = 1338;
const DNS: u16 = 53;
const DNS_PORT: u16 = 15053;

/// One of the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Before connections are tracked.
    Raw,
    /// Marks, and TPROXY.
    Mangle,
    /// Destinations of new connections.
    Nat,
}

impl Table {
    /// All, in the order in which packets meet them.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mangle, Self::Nat];

    /// As iptables calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// One of our chains, with Istio's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chain {
    /// All that comes in: hooked in PREROUTING.
    Inbound,
    /// All that a process here sends: hooked in OUTPUT.
    Output,
    /// To the inbound port.
    InRedirect,
    /// To the outbound port.
    Redirect,
    /// DNS queries of the application.
    OutputDns,
    /// To the inbound port, by TPROXY.
    Tproxy,
    /// Packets of connections that the sidecar has.
    Divert,
    /// Packets of no connection.
    Drop,
}

impl Chain {
    /// As iptables shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "ISTIO_INBOUND",
            Self::Output => "ISTIO_OUTPUT",
            Self::InRedirect => "ISTIO_IN_REDIRECT",
            Self::Redirect => "ISTIO_REDIRECT",
            Self::OutputDns => "ISTIO_OUTPUT_DNS",
            Self::Tproxy => "ISTIO_TPROXY",
            Self::Divert => "ISTIO_DIVERT",
            Self::Drop => "ISTIO_DROP",
        }
    }
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As all tools call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Arrives on this interface.
    In(String),
    /// Leaves on this interface.
    Out(String),
    /// Comes from there.
    Source(IpNet),
    /// Goes there.
    Destination(IpNet),
    /// Goes elsewhere.
    NotDestination(IpNet),
    /// Is of this protocol.
    Transport(Protocol),
    /// Goes to this port.
    Port(Protocol, u16),
    /// Goes to none of these ports.
    NotPorts(Protocol, Vec<u16>),
    /// Comes from this port.
    SourcePort(Protocol, u16),
    /// Sent by this user.
    Uid(u32),
    /// Not sent by this user.
    NotUid(u32),
    /// Sent by this group.
    Gid(u32),
    /// Not sent by this group.
    NotGid(u32),
    /// Carries this mark.
    Mark(u32),
    /// Doesn't carry this mark.
    NotMark(u32),
    /// Its connection carries this mark.
    ConnectionMark(u32),
    /// Belongs to a connection.
    Established,
    /// Belongs to no connection, and begins none.
    Invalid,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the calling chain.
    Return,
    /// Through.
    Accept,
    /// Gone.
    Drop,
    /// To another chain.
    Jump(Chain),
    /// To this port here.
    Redirect(u16),
    /// To the transparent socket on this port, with this mark.
    Tproxy(u16, u32),
    /// Marks it.
    SetMark(u32),
    /// Marks its connection as it is marked.
    SaveMark,
    /// Marks it as its connection is marked.
    RestoreMark,
    /// Tracks it in this zone.
    Zone(u16),
}

/// Conditions and verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
}

impl Rule {
    /// The only family that the rule is about; `None` for both.
    pub fn family(&self) -> Option<Family> {
        self.matches.iter().find_map(|it| match it {
            Match::Source(net) | Match::Destination(net) | Match::NotDestination(net) => Some(family(*net)),
            _ => None,
        })
    }
}

fn family(net: IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

/// The rules of one table, by chain; a chain that is not there has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRules {
    /// Which table.
    pub table: Table,
    /// Its chains.
    pub chains: Vec<(Chain, Vec<Rule>)>,
}

impl TableRules {
    fn new(table: Table) -> Self {
        Self { table, chains: Vec::new() }
    }

    fn add(&mut self, chain: Chain, verdict: Verdict, matches: impl Into<Vec<Match>>) {
        let rule = Rule { matches: matches.into(), verdict };
        match self.chains.iter_mut().find(|(known, _)| *known == chain) {
            Some((_, rules)) => rules.push(rule),
            None => self.chains.push((chain, vec![rule])),
        }
    }

    /// True where the chain has rules.
    pub fn has(&self, chain: Chain) -> bool {
        self.chains.iter().any(|(known, _)| *known == chain)
    }
}

/// The interface of a machine's talk with itself.
fn lo() -> String {
    "lo".to_owned()
}

impl Capture {
    /// All tables, the ones without rules left out.
    pub fn rules(&self) -> Vec<TableRules> {
        let tables = [self.raw(), self.mangle(), self.nat()];
        tables.into_iter().filter(|table| !table.chains.is_empty()).collect()
    }

    fn loopbacks(&self) -> [IpNet; 2] {
        [IpNet::V4(self.loopback), IpNet::V6(Ipv6Net::from(Ipv6Addr::LOCALHOST))]
    }

    fn inbound_sources() -> [IpNet; 2] {
        [IpNet::V4(Ipv4Net::from(INBOUND_SOURCE_V4)), IpNet::V6(Ipv6Net::from(INBOUND_SOURCE_V6))]
    }

    /// Conditions that say "sent by the sidecar", one for each user and group.
    fn own(&self) -> Vec<Match> {
        let uids = self.uids.iter().map(|uid| Match::Uid(*uid));
        uids.chain(self.gids.iter().map(|gid| Match::Gid(*gid))).collect()
    }

    fn nat(&self) -> TableRules {
        use Match::*;
        let mut nat = TableRules::new(Table::Nat);
        let tcp = Protocol::Tcp;
        for interface in &self.excluded_interfaces {
            nat.add(Chain::Inbound, Verdict::Return, [In(interface.clone())]);
        }
        // What a virtual machine in the pod sends is outbound to us, though it comes in.
        for interface in &self.virtual_interfaces {
            match &self.include {
                None => nat.add(Chain::Inbound, Verdict::Jump(Chain::Redirect), [In(interface.clone())]),
                Some(ranges) => {
                    for range in ranges {
                        let matches = [In(interface.clone()), Destination(*range)];
                        nat.add(Chain::Inbound, Verdict::Jump(Chain::Redirect), matches);
                    }
                }
            }
            nat.add(Chain::Inbound, Verdict::Return, [In(interface.clone())]);
        }
        if self.mode == Mode::Redirect {
            self.inbound_ports(&mut nat, |nat, matches| {
                nat.add(Chain::Inbound, Verdict::Jump(Chain::InRedirect), matches);
            });
        }
        nat.add(Chain::InRedirect, Verdict::Redirect(self.inbound_port), [Transport(tcp)]);
        nat.add(Chain::Redirect, Verdict::Redirect(self.outbound_port), [Transport(tcp)]);
        self.output(&mut nat);
        nat
    }

    /// Which inbound connections are turned; `turn` adds the rule that does it.
    fn inbound_ports(&self, table: &mut TableRules, turn: impl Fn(&mut TableRules, Vec<Match>)) {
        use Match::*;
        let tcp = Protocol::Tcp;
        match &self.inbound {
            None => {
                table.add(Chain::Inbound, Verdict::Return, [Port(tcp, self.tunnel_port)]);
                for port in &self.inbound_exclude {
                    table.add(Chain::Inbound, Verdict::Return, [Port(tcp, *port)]);
                }
                turn(table, vec![Transport(tcp)]);
            }
            Some(ports) => {
                for port in ports.iter().filter(|port| **port != self.tunnel_port) {
                    turn(table, vec![Port(tcp, *port)]);
                }
                // A redirected self-call doesn't come this way.
                if self.mode == Mode::Tproxy && !ports.contains(&SELF_CHECK_PORT) {
                    turn(table, vec![Port(tcp, SELF_CHECK_PORT)]);
                }
            }
        }
    }

    fn output(&self, nat: &mut TableRules) {
        use Match::*;
        let tcp = Protocol::Tcp;
        let chain = Chain::Output;
        for interface in &self.excluded_interfaces {
            nat.add(chain, Verdict::Return, [Out(interface.clone())]);
        }
        for port in &self.outbound_exclude {
            nat.add(chain, Verdict::Return, [Port(tcp, *port)]);
            nat.add(chain, Verdict::Return, [Port(Protocol::Udp, *port)]);
        }
        // From the sidecar's inbound side to the application: or it would come back for ever.
        for source in Self::inbound_sources() {
            nat.add(chain, Verdict::Return, [Out(lo()), Source(source)]);
        }
        let users: Vec<_> = self.uids.iter().map(|uid| (Uid(*uid), NotUid(*uid))).collect();
        let groups: Vec<_> = self.gids.iter().map(|gid| (Gid(*gid), NotGid(*gid))).collect();
        for (owners, are_users) in [(users, true), (groups, false)] {
            self.by_the_sidecar(nat, &owners, are_users && self.dns.is_some());
        }
        match &self.owners {
            Owners::All => {}
            Owners::Only(groups) => {
                let matches: Vec<_> = groups.iter().map(|gid| NotGid(*gid)).collect();
                nat.add(chain, Verdict::Return, matches);
            }
            Owners::Except(groups) => {
                groups.iter().for_each(|gid| nat.add(chain, Verdict::Return, [Gid(*gid)]));
            }
        }
        self.output_dns(nat);
        // From one container to another by localhost.
        for loopback in self.loopbacks() {
            nat.add(chain, Verdict::Return, [Destination(loopback)]);
        }
        for range in &self.exclude {
            nat.add(chain, Verdict::Return, [Destination(*range)]);
        }
        for port in &self.outbound_include {
            nat.add(chain, Verdict::Jump(Chain::Redirect), [Port(tcp, *port)]);
        }
        match &self.include {
            None => nat.add(chain, Verdict::Jump(Chain::Redirect), []),
            Some(ranges) => {
                for range in ranges {
                    nat.add(chain, Verdict::Jump(Chain::Redirect), [Destination(*range)]);
                }
            }
        }
    }

    /// What users or groups of the sidecar send, and what others send to their own pod.
    fn by_the_sidecar(&self, nat: &mut TableRules, owners: &[(Match, Match)], spare_dns: bool) {
        use Match::*;
        if owners.is_empty() {
            return;
        }
        let tcp = Protocol::Tcp;
        let chain = Chain::Output;
        let spared = match spare_dns {
            true => vec![DNS, self.tunnel_port],
            false => vec![self.tunnel_port],
        };
        // The outbound side has chosen its own pod: policy and telemetry of the inbound side hold for that too.
        for (owner, _) in owners {
            for loopback in self.loopbacks() {
                let ports = NotPorts(tcp, spared.clone());
                let matches = [Out(lo()), NotDestination(loopback), ports, owner.clone()];
                nat.add(chain, Verdict::Jump(Chain::InRedirect), matches);
            }
        }
        // The application to its own pod: directly. Left out where somebody wants loopback captured.
        if !self.captures_loopback() {
            let mut matches = vec![Out(lo())];
            if self.dns.is_some() {
                matches.push(NotPorts(tcp, vec![DNS]));
            }
            matches.extend(owners.iter().map(|(_, other)| other.clone()));
            nat.add(chain, Verdict::Return, matches);
        }
        for (owner, _) in owners {
            nat.add(chain, Verdict::Return, [owner.clone()]);
        }
    }

    fn captures_loopback(&self) -> bool {
        self.include.iter().flatten().any(|range| range.addr().is_loopback())
    }

    fn output_dns(&self, nat: &mut TableRules) {
        use Match::*;
        let Some(servers) = &self.dns else { return };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let matches = [Port(protocol, DNS)];
            nat.add(Chain::Output, Verdict::Jump(Chain::OutputDns), matches.clone());
            match servers {
                DnsServers::Any => nat.add(Chain::OutputDns, Verdict::Redirect(DNS_PORT), matches),
                DnsServers::These(servers) => {
                    for server in servers {
                        let matches = [Port(protocol, DNS), Destination(IpNet::from(*server))];
                        nat.add(Chain::OutputDns, Verdict::Redirect(DNS_PORT), matches);
                    }
                }
            }
        }
    }

    fn mangle(&self) -> TableRules {
        use Match::*;
        let mut mangle = TableRules::new(Table::Mangle);
        if self.drop_invalid {
            mangle.add(Chain::Inbound, Verdict::Jump(Chain::Drop), [Invalid]);
            mangle.add(Chain::Drop, Verdict::Drop, []);
        }
        if self.mode == Mode::Redirect {
            return mangle;
        }
        let mark = self.mark;
        for interface in self.excluded_interfaces.iter().chain(&self.virtual_interfaces) {
            mangle.add(Chain::Inbound, Verdict::Return, [In(interface.clone())]);
        }
        // The sidecar's own packets, and by them its connections.
        mangle.add(Chain::Inbound, Verdict::SaveMark, [Mark(mark)]);
        mangle.add(Chain::Inbound, Verdict::Return, [Mark(mark)]);
        for source in Self::inbound_sources() {
            mangle.add(Chain::Inbound, Verdict::Return, [In(lo()), Source(source)]);
        }
        // The application to its own pod; only the sidecar's self-calls are turned.
        mangle.add(Chain::Inbound, Verdict::Return, [In(lo()), NotMark(SELF_CALL)]);
        self.inbound_ports(&mut mangle, |mangle, matches| {
            let established = [&matches[..], &[Established]].concat();
            mangle.add(Chain::Inbound, Verdict::Jump(Chain::Divert), established);
            mangle.add(Chain::Inbound, Verdict::Jump(Chain::Tproxy), matches);
        });
        mangle.add(Chain::Divert, Verdict::SetMark(mark), []);
        mangle.add(Chain::Divert, Verdict::Accept, []);
        for loopback in self.loopbacks() {
            let matches = [NotDestination(loopback), Transport(Protocol::Tcp)];
            mangle.add(Chain::Tproxy, Verdict::Tproxy(self.inbound_port, mark), matches);
        }
        mangle.add(Chain::Output, Verdict::Return, [Out(lo()), Mark(mark)]);
        for owner in self.own() {
            for loopback in self.loopbacks() {
                let matches = [Out(lo()), NotDestination(loopback), owner.clone()];
                mangle.add(Chain::Output, Verdict::SetMark(SELF_CALL), matches);
            }
        }
        mangle.add(Chain::Output, Verdict::RestoreMark, [ConnectionMark(mark)]);
        mangle
    }

    /// Application and sidecar may ask the same server from the same port: zones keep the two apart where connections are tracked.
    fn raw(&self) -> TableRules {
        use Match::*;
        const SIDECAR: u16 = 1;
        const APPLICATION: u16 = 2;
        let mut raw = TableRules::new(Table::Raw);
        let Some(servers) = &self.dns else { return raw };
        let udp = Protocol::Udp;
        for owner in self.own() {
            raw.add(Chain::Output, Verdict::Zone(SIDECAR), [Port(udp, DNS), owner.clone()]);
            raw.add(Chain::Output, Verdict::Zone(APPLICATION), [SourcePort(udp, DNS_PORT), owner]);
        }
        let each = |base: Match, of: fn(IpNet) -> Match| -> Vec<Vec<Match>> {
            match servers {
                DnsServers::Any => vec![vec![base]],
                DnsServers::These(servers) => {
                    let net = |server: &IpAddr| of(IpNet::from(*server));
                    servers.iter().map(|server| vec![base.clone(), net(server)]).collect()
                }
            }
        };
        for matches in each(Port(udp, DNS), Destination) {
            raw.add(Chain::Output, Verdict::Zone(APPLICATION), matches);
        }
        for matches in each(SourcePort(udp, DNS), Source) {
            raw.add(Chain::Inbound, Verdict::Zone(SIDECAR), matches);
        }
        raw
    }
}
