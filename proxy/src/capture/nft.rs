//! Rules as a script for `nft -f`: one transaction, in tables of family inet that are ours alone.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::rules::{Chain, Family, Match, Rule, Table, TableRules, Verdict};

/// The script that puts these rules in the place of whatever an earlier one has set.
pub fn script(tables: &[TableRules], ipv6: bool) -> String {
    let mut out = clean();
    for table in tables {
        render(&mut out, table, ipv6);
    }
    out
}

/// The script that removes what any script has set.
pub fn clean() -> String {
    // To delete what isn't there is an error; to add what is there isn't.
    Table::ALL.map(|table| format!("table inet {0}\ndelete table inet {0}\n", table_name(table))).concat()
}

/// Tables of ours begin so.
pub const PREFIX: &str = "istio-proxy-";

fn table_name(table: Table) -> String {
    format!("{PREFIX}{}", table.name())
}

fn chain_name(chain: Chain) -> String {
    chain.name().to_ascii_lowercase().replace('_', "-")
}

fn render(out: &mut String, table: &TableRules, ipv6: bool) {
    // Writing into a String never fails.
    let _ = writeln!(out, "table inet {} {{", table_name(table.table));
    for (hook, chain) in [("prerouting", Chain::Inbound), ("output", Chain::Output)] {
        if !table.has(chain) {
            continue;
        }
        let (kind, priority) = match (table.table, chain) {
            (Table::Raw, _) => ("filter", -300),
            // A mark that changes in mangle's output changes the way that a packet takes.
            (Table::Mangle, Chain::Output) => ("route", -150),
            (Table::Mangle, _) => ("filter", -150),
            (Table::Nat, _) => ("nat", -100),
        };
        let _ = writeln!(out, "  chain {hook} {{");
        let _ = writeln!(out, "    type {kind} hook {hook} priority {priority}; policy accept;");
        if !ipv6 {
            let _ = writeln!(out, "    meta nfproto ipv6 counter accept");
        }
        let _ = writeln!(out, "    counter jump {}", chain_name(chain));
        let _ = writeln!(out, "  }}");
    }
    for (chain, rules) in &table.chains {
        let _ = writeln!(out, "  chain {} {{", chain_name(*chain));
        for rule in rules.iter().filter(|rule| ipv6 || rule.family() != Some(Family::V6)) {
            let _ = writeln!(out, "    {}", line(rule));
        }
        let _ = writeln!(out, "  }}");
    }
    let _ = writeln!(out, "}}");
}

fn line(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(condition).collect();
    words.push("counter".to_owned());
    words.push(verdict(rule.verdict, rule.family()));
    words.join(" ")
}

fn condition(it: &Match) -> String {
    match it {
        Match::In(interface) => format!("iifname \"{interface}\""),
        Match::Out(interface) => format!("oifname \"{interface}\""),
        Match::Source(net) => format!("{} saddr {net}", ip(*net)),
        Match::Destination(net) => format!("{} daddr {net}", ip(*net)),
        Match::NotDestination(net) => format!("{} daddr != {net}", ip(*net)),
        Match::Transport(protocol) => format!("meta l4proto {}", protocol.name()),
        Match::Port(protocol, port) => format!("{} dport {port}", protocol.name()),
        Match::NotPorts(protocol, ports) => {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            format!("{} dport != {{ {} }}", protocol.name(), ports.join(", "))
        }
        Match::SourcePort(protocol, port) => format!("{} sport {port}", protocol.name()),
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::NotUid(uid) => format!("meta skuid != {uid}"),
        Match::Gid(gid) => format!("meta skgid {gid}"),
        Match::NotGid(gid) => format!("meta skgid != {gid}"),
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::NotMark(mark) => format!("meta mark != {mark}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark}"),
        Match::Established => "ct state established,related".to_owned(),
        Match::Invalid => "ct state invalid".to_owned(),
    }
}

fn ip(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn verdict(verdict: Verdict, family: Option<Family>) -> String {
    match verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Jump(chain) => format!("jump {}", chain_name(chain)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Tproxy(port, mark) => {
            let family = family.map_or("", |of| if of == Family::V4 { "ip " } else { "ip6 " });
            format!("meta mark set {mark} tproxy {family}to :{port} accept")
        }
        Verdict::SetMark(mark) => format!("meta mark set {mark}"),
        Verdict::SaveMark => "ct mark set meta mark".to_owned(),
        Verdict::RestoreMark => "meta mark set ct mark".to_owned(),
        Verdict::Zone(zone) => format!("ct zone set {zone} return"),
    }
}
