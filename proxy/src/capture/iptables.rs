//! Rules as text for `iptables-restore --noflush` and `ip6tables-restore --noflush`: one transaction for each table.
//!
//! What is there already is read from `iptables-save`, so that a jump isn't set twice and chains of an earlier run that have no
//! use any more go.

use std::fmt::Write as _;

use super::rules::{Chain, Family, Match, Rule, Table, TableRules, Verdict};

/// Chains of ours, and of Istio's own init container, begin so.
const PREFIX: &str = "ISTIO_";

/// What of ours is in the kernel, table by table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Present {
    tables: Vec<(Table, Vec<String>, Vec<String>)>,
}

impl Present {
    /// Reads what `iptables-save` printed.
    pub fn parse(text: &str) -> Self {
        let mut present = Self::default();
        let mut current = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                current = Table::ALL.into_iter().find(|table| table.name() == name);
            }
            let Some(table) = current else { continue };
            if let Some(rest) = line.strip_prefix(':') {
                let chain = rest.split(' ').next().unwrap_or_default();
                if chain.starts_with(PREFIX) {
                    present.entry(table).1.push(chain.to_owned());
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let mut words = rule.split(' ');
                let builtin = words.next().is_some_and(|chain| !chain.starts_with(PREFIX));
                let ours = words.clone().zip(words.skip(1));
                let ours = ours.into_iter().any(|(flag, target)| flag == "-j" && target.starts_with(PREFIX));
                if builtin && ours {
                    present.entry(table).2.push(rule.to_owned());
                }
            }
        }
        present
    }

    /// True where nothing of ours is there.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    fn entry(&mut self, table: Table) -> &mut (Table, Vec<String>, Vec<String>) {
        if let Some(index) = self.tables.iter().position(|(known, ..)| *known == table) {
            return &mut self.tables[index];
        }
        self.tables.push((table, Vec::new(), Vec::new()));
        let last = self.tables.len() - 1;
        &mut self.tables[last]
    }

    fn of(&self, table: Table) -> (&[String], &[String]) {
        let found = self.tables.iter().find(|(known, ..)| *known == table);
        found.map_or((&[], &[]), |(_, chains, jumps)| (chains, jumps))
    }
}

/// The text that puts these rules in the place of what is there.
pub fn script(tables: &[TableRules], family: Family, present: &Present) -> String {
    let mut out = String::new();
    for table in Table::ALL {
        let rules = tables.iter().find(|rules| rules.table == table);
        let (chains, jumps) = present.of(table);
        if rules.is_none() && chains.is_empty() && jumps.is_empty() {
            continue;
        }
        // Writing into a String never fails.
        let _ = writeln!(out, "*{}", table.name());
        render(&mut out, rules, family, chains, jumps);
        let _ = writeln!(out, "COMMIT");
    }
    out
}

fn render(out: &mut String, rules: Option<&TableRules>, family: Family, chains: &[String], jumps: &[String]) {
    let wanted: Vec<&str> = rules.iter().flat_map(|rules| &rules.chains).map(|(c, _)| c.name()).collect();
    // Naming a chain makes it where it isn't, and empties it where it is.
    for chain in &wanted {
        let _ = writeln!(out, ":{chain} - [0:0]");
    }
    let unused: Vec<&String> = chains.iter().filter(|chain| !wanted.contains(&chain.as_str())).collect();
    for chain in &unused {
        let _ = writeln!(out, ":{chain} - [0:0]");
    }
    let hooks = [("PREROUTING", Chain::Inbound), ("OUTPUT", Chain::Output)];
    let hooks = hooks.into_iter().filter(|(_, chain)| wanted.contains(&chain.name()));
    let hooks: Vec<String> = hooks.map(|(hook, chain)| format!("{hook} -j {}", chain.name())).collect();
    for jump in jumps.iter().filter(|jump| !hooks.contains(jump)) {
        let _ = writeln!(out, "-D {jump}");
    }
    for hook in hooks.iter().filter(|hook| !jumps.contains(hook)) {
        let _ = writeln!(out, "-A {hook}");
    }
    for (chain, rules) in rules.iter().flat_map(|rules| &rules.chains) {
        for rule in rules.iter().filter(|rule| rule.family().is_none_or(|of| of == family)) {
            let _ = writeln!(out, "-A {} {}", chain.name(), line(rule));
        }
    }
    for chain in unused {
        let _ = writeln!(out, "-X {chain}");
    }
}

fn line(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(condition).collect();
    words.push(verdict(rule.verdict));
    words.join(" ")
}

fn condition(it: &Match) -> String {
    match it {
        Match::In(interface) => format!("-i {interface}"),
        Match::Out(interface) => format!("-o {interface}"),
        Match::Source(net) => format!("-s {net}"),
        Match::Destination(net) => format!("-d {net}"),
        Match::NotDestination(net) => format!("! -d {net}"),
        Match::Transport(protocol) => format!("-p {}", protocol.name()),
        Match::Port(protocol, port) => format!("-p {0} -m {0} --dport {port}", protocol.name()),
        Match::NotPorts(protocol, ports) => match &ports[..] {
            [port] => format!("-p {0} -m {0} ! --dport {port}", protocol.name()),
            ports => {
                let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                format!("-p {} -m multiport ! --dports {}", protocol.name(), ports.join(","))
            }
        },
        Match::SourcePort(protocol, port) => format!("-p {0} -m {0} --sport {port}", protocol.name()),
        Match::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        Match::NotUid(uid) => format!("-m owner ! --uid-owner {uid}"),
        Match::Gid(gid) => format!("-m owner --gid-owner {gid}"),
        Match::NotGid(gid) => format!("-m owner ! --gid-owner {gid}"),
        Match::Mark(mark) => format!("-m mark --mark {mark}"),
        Match::NotMark(mark) => format!("-m mark ! --mark {mark}"),
        Match::ConnectionMark(mark) => format!("-m connmark --mark {mark}"),
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED".to_owned(),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
    }
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Accept => "-j ACCEPT".to_owned(),
        Verdict::Drop => "-j DROP".to_owned(),
        Verdict::Jump(chain) => format!("-j {}", chain.name()),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Tproxy(port, mark) => format!("-j TPROXY --on-port {port} --tproxy-mark {mark}/0xffffffff"),
        Verdict::SetMark(mark) => format!("-j MARK --set-mark {mark}"),
        Verdict::SaveMark => "-j CONNMARK --save-mark".to_owned(),
        Verdict::RestoreMark => "-j CONNMARK --restore-mark".to_owned(),
        Verdict::Zone(zone) => format!("-j CT --zone {zone}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_others_go_and_what_fits_stays() {
        let saved = "# Generated by iptables-save\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE_X - [0:0]
:ISTIO_INBOUND - [0:0]\n:ISTIO_OLD - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -j ISTIO_OUTPUT
-A OUTPUT -j KUBE_X\n-A ISTIO_OLD -p tcp -j ISTIO_INBOUND\nCOMMIT\n";
        let present = Present::parse(saved);
        assert!(!present.is_empty() && Present::parse("*nat\n:OUTPUT ACCEPT [0:0]\n").is_empty());
        let rule = Rule { matches: vec![], verdict: Verdict::Return };
        let chains = vec![(Chain::Inbound, vec![rule.clone()]), (Chain::Output, vec![rule])];
        let rules = [TableRules { table: Table::Nat, chains }];
        let expected = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_OLD - [0:0]
-D PREROUTING -p tcp -j ISTIO_INBOUND\n-A PREROUTING -j ISTIO_INBOUND
-A ISTIO_INBOUND -j RETURN\n-A ISTIO_OUTPUT -j RETURN\n-X ISTIO_OLD\nCOMMIT\n";
        assert_eq!(script(&rules, Family::V4, &present), expected);
        let cleaned =
            "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_OLD - [0:0]\n-D PREROUTING -p tcp -j ISTIO_INBOUND
-D OUTPUT -j ISTIO_OUTPUT\n-X ISTIO_INBOUND\n-X ISTIO_OLD\nCOMMIT\n";
        assert_eq!(script(&[], Family::V4, &present), cleaned);
    }
}
