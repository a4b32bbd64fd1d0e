//! What pilots know of workloads, and sidecars of their callers, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::{self, table};
use crate::reach::Mesh;

/// Sidecars that are asked at once.
const AT_ONCE: usize = 16;

/// Why a sidecar can't be asked that pilots don't say is there.
const NOT_CONNECTED: &str = "not connected to any pilot that answers";

/// A workload, as pilot knows it.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Workload {
    pub namespace: String,
    /// Pod or WorkloadEntry.
    pub name: String,
    /// Deployment and the like.
    pub workload: String,
    pub addresses: Vec<String>,
    pub takes_mutual_tls: bool,
    /// Of PeerAuthentication, on ports that `port_modes` doesn't have.
    pub mode: String,
    /// Which one says it, as `namespace/name`.
    pub policy: Option<String>,
    /// It selects the workload: what the namespace's says is nothing to it.
    pub own_policy: bool,
    /// Of ports that such a one names.
    pub port_modes: BTreeMap<String, String>,
}

impl Workload {
    /// As its sidecar calls itself.
    pub(super) fn full_name(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// What holds for one of its ports, and whether that stays whatever the namespace's policy says.
    fn mode_at(&self, port: u16) -> (&str, bool) {
        match self.port_modes.get(&port.to_string()) {
            Some(mode) => (mode, true),
            None => (&self.mode, self.own_policy),
        }
    }
}

/// Somebody who calls a workload in plaintext.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Caller {
    /// Who is called.
    pub namespace: String,
    pub workload: String,
    pub pod: String,
    pub port: u16,
    /// Who calls: `namespace/workload`, where the address is one's.
    pub caller: Option<String>,
    /// It has a sidecar, which its connection did not go through, or which was told to speak plaintext.
    pub caller_has_sidecar: bool,
    /// That is why: mutual TLS is off there, and its sidecar changes over when it is not.
    pub would_follow: bool,
    /// A policy of the workload's own decides at this port; it stays.
    pub own_policy: bool,
    pub address: String,
    pub connections: u64,
    pub open: u32,
    /// Milliseconds since 1970, by the clock of the workload's sidecar.
    pub last_seen: u64,
    /// How many ago that was when the sidecar was asked. Nobody else's clock has a say in it.
    pub age: u64,
}

impl Caller {
    /// STRICT in the namespace would refuse it, if everything else stays.
    pub(super) fn would_be_refused(&self) -> bool {
        !self.own_policy && !self.would_follow
    }
}

/// What pilot says.
#[derive(Debug, Clone, Deserialize)]
struct Known {
    root_namespace: String,
    workloads: Vec<Workload>,
}

/// What a sidecar says.
#[derive(Debug, Clone, Deserialize)]
struct Page {
    now: u64,
    takes_plaintext: bool,
    callers: Vec<Seen>,
}

#[derive(Debug, Clone, Deserialize)]
struct Seen {
    address: String,
    port: u16,
    connections: u64,
    open: u32,
    last_seen: u64,
}

/// Everything about a namespace, or the whole mesh.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Report {
    /// Whose policies without a selector are the whole mesh's. Pilots may differ.
    pub root_namespaces: BTreeSet<String>,
    pub workloads: Vec<Workload>,
    pub callers: Vec<Caller>,
    /// Those that are connected to a pilot.
    pub sidecars: BTreeSet<String>,
    /// Those that take plaintext.
    pub taking_plaintext: BTreeSet<String>,
    /// Those that could not be asked, and why; workloads that take mutual TLS and have no sidecar connected among them.
    pub silent: BTreeMap<String, String>,
}

impl Report {
    /// Asks everybody.
    pub(super) async fn read(mesh: &Mesh, namespace: Option<&str>, since: Option<Duration>) -> Result<Self> {
        let mut report = Self::default();
        let mut all = BTreeMap::new();
        for (pilot, page) in mesh.of_pilots("/debug/workloadz").await? {
            let known: Known = serde_json::from_value(page)
                .with_context(|| format!("/debug/workloadz of pilot {} can't be read", pilot.name))?;
            report.root_namespaces.insert(known.root_namespace);
            all.extend(known.workloads.into_iter().map(|w| ((w.namespace.clone(), w.name.clone()), w)));
        }
        let everybody: Vec<Workload> = all.into_values().collect();
        let is_shown = |of: &str| namespace.is_none_or(|namespace| namespace == of);
        report.workloads = everybody.iter().filter(|w| is_shown(&w.namespace)).cloned().collect();
        let clients = mesh.clients().await?;
        report.connected(&clients);
        report.sidecars.retain(|name| name.rsplit_once('.').is_some_and(|(_, of)| is_shown(of)));
        let pages: Vec<(String, Result<Page>)> =
            stream::iter(report.sidecars.clone().into_iter().map(async |name| {
                let page = ask(mesh, &name).await;
                (name, page)
            }))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (name, page) in pages {
            match page {
                Ok(page) => report.add(&name, page, &everybody, since),
                Err(error) => drop(report.silent.insert(name, format!("{error:#}"))),
            }
        }
        report.callers.sort_by(|a, b| {
            (&a.namespace, &a.workload, a.port, &a.address).cmp(&(
                &b.namespace,
                &b.workload,
                b.port,
                &b.address,
            ))
        });
        Ok(report)
    }

    /// Who is a sidecar; and whose nobody can ask, although it must have one. A gateway takes no calls as a workload does.
    fn connected(&mut self, clients: &[Value]) {
        let named = |client: &&Value| client["proxy"].as_str().map(str::to_owned);
        let (sidecars, others): (Vec<&Value>, Vec<&Value>) =
            clients.iter().partition(|client| client["proxy_type"] == "sidecar");
        self.sidecars = sidecars.iter().filter_map(named).collect();
        let others: BTreeSet<String> = others.iter().filter_map(named).collect();
        for workload in self.workloads.iter().filter(|w| w.takes_mutual_tls) {
            let name = workload.full_name();
            if !self.sidecars.contains(&name) && !others.contains(&name) {
                self.silent.insert(name, NOT_CONNECTED.to_owned());
            }
        }
    }

    fn add(&mut self, name: &str, page: Page, everybody: &[Workload], since: Option<Duration>) {
        let (pod, namespace) = name.rsplit_once('.').unwrap_or((name, ""));
        if page.takes_plaintext {
            self.taking_plaintext.insert(name.to_owned());
        }
        let own = everybody.iter().find(|w| w.name == pod && w.namespace == namespace);
        for seen in page.callers {
            let age = page.now.saturating_sub(seen.last_seen);
            if since.is_some_and(|since| u128::from(age) > since.as_millis()) {
                continue;
            }
            let caller = everybody.iter().find(|w| w.addresses.contains(&seen.address));
            let caller_has_sidecar = caller.is_some_and(|w| w.takes_mutual_tls);
            let (mode, own_policy) = own.map_or(("", false), |w| w.mode_at(seen.port));
            self.callers.push(Caller {
                namespace: namespace.to_owned(),
                workload: own.map_or(pod, |w| &w.workload).to_owned(),
                pod: pod.to_owned(),
                port: seen.port,
                caller: caller.map(|w| format!("{}/{}", w.namespace, w.workload)),
                caller_has_sidecar,
                would_follow: caller_has_sidecar && mode == "DISABLE",
                own_policy,
                address: seen.address,
                connections: seen.connections,
                open: seen.open,
                last_seen: seen.last_seen,
                age,
            });
        }
    }
}

async fn ask(mesh: &Mesh, name: &str) -> Result<Page> {
    let admin = mesh.admin(name).await?;
    let page: Value = mesh.page(&admin, "/plaintext_callers").await?;
    Ok(serde_json::from_value(page)?)
}

/// How long ago, as kubectl says ages.
fn ago(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..=1 => "now".to_owned(),
        2..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(&str, &str), Vec<&Workload>> = BTreeMap::new();
        for workload in &self.workloads {
            groups.entry((&workload.namespace, &workload.workload)).or_default().push(workload);
        }
        if groups.is_empty() {
            return f.write_str("There are no workloads.");
        }
        let mut shown =
            table(&["NAMESPACE", "WORKLOAD", "PODS", "MODE", "PLAINTEXT CALLERS", "STRICT WOULD"]);
        for ((namespace, name), pods) in &groups {
            let callers = || {
                self.callers
                    .iter()
                    .filter(|caller| caller.namespace == *namespace && caller.workload == *name)
            };
            let refused = addresses(callers().filter(|caller| caller.would_be_refused()));
            shown.add_row([
                (*namespace).to_owned(),
                (*name).to_owned(),
                pods.len().to_string(),
                modes(pods),
                addresses(callers()).to_string(),
                self.verdict(pods, refused),
            ]);
        }
        f.write_str(&output::text(&shown))?;
        if !self.callers.is_empty() {
            write!(f, "\n\n{}", output::text(&table_of(&self.callers)))?;
        }
        for (name, why) in &self.silent {
            write!(f, "\nosier: {name} can't be asked: {why}")?;
        }
        Ok(())
    }
}

impl Report {
    fn verdict(&self, pods: &[&Workload], callers: usize) -> String {
        if pods.iter().all(|w| w.mode == "STRICT" || w.own_policy) {
            return "change nothing".to_owned();
        }
        let has_sidecar = |w: &Workload| self.sidecars.contains(&w.full_name());
        let without_certificate = pods.iter().any(|w| has_sidecar(w) && !w.takes_mutual_tls);
        let silent = pods.iter().filter(|w| self.silent.contains_key(&w.full_name())).count();
        match callers {
            _ if without_certificate => "refuse everybody: no certificate".to_owned(),
            0 if silent > 0 => format!("not known: {silent} can't be asked"),
            0 if !pods.iter().any(|w| has_sidecar(w)) => "change nothing: no sidecar".to_owned(),
            0 => "break nothing that was seen".to_owned(),
            1 => "refuse 1 caller".to_owned(),
            callers => format!("refuse {callers} callers"),
        }
    }

    /// Who is silent and would follow the namespace's policy, and why.
    pub(super) fn unasked(&self) -> impl Iterator<Item = (&String, &String)> {
        let keeps = |name: &str| self.workloads.iter().any(|w| w.own_policy && w.full_name() == name);
        self.silent.iter().filter(move |(name, _)| !keeps(name))
    }

    /// Those of its callers who have come since `earlier`, or are still there.
    pub(super) fn calling_since(mut self, earlier: &Self) -> Self {
        let before = |now: &Caller| {
            let same =
                |then: &&Caller| (&then.pod, then.port, &then.address) == (&now.pod, now.port, &now.address);
            earlier.callers.iter().find(same).map_or(0, |then| then.connections)
        };
        self.callers.retain(|caller| caller.open > 0 || caller.connections > before(caller));
        self
    }
}

/// One line for each caller.
pub(super) fn table_of(callers: &[Caller]) -> comfy_table::Table {
    let mut shown =
        table(&["NAMESPACE", "WORKLOAD", "PORT", "CALLER", "ADDRESS", "CONNECTIONS", "OPEN", "LAST SEEN"]);
    for caller in callers {
        let name = match &caller.caller {
            None => "-".to_owned(),
            Some(name) if caller.would_follow => format!("{name} (its sidecar follows)"),
            Some(name) if caller.caller_has_sidecar => format!("{name} (past its sidecar)"),
            Some(name) => format!("{name} (no sidecar)"),
        };
        shown.add_row([
            caller.namespace.clone(),
            caller.workload.clone(),
            format!("{}{}", caller.port, if caller.own_policy { " (own policy)" } else { "" }),
            name,
            caller.address.clone(),
            caller.connections.to_string(),
            caller.open.to_string(),
            ago(caller.age),
        ]);
    }
    shown
}

/// From how many addresses they call.
fn addresses<'c>(callers: impl Iterator<Item = &'c Caller>) -> usize {
    callers.map(|caller| caller.address.as_str()).collect::<BTreeSet<_>>().len()
}

fn modes(pods: &[&Workload]) -> String {
    let of = |w: &&Workload| {
        let others = w.port_modes.iter().filter(|(_, mode)| **mode != w.mode);
        let ports: String = others.map(|(port, mode)| format!(" {port}:{mode}")).collect();
        format!("{}{ports}", w.mode)
    };
    pods.iter().map(of).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, address: &str, meshed: bool) -> Workload {
        Workload {
            namespace: "shop".into(),
            name: format!("{name}-1"),
            workload: name.into(),
            addresses: vec![address.into()],
            takes_mutual_tls: meshed,
            mode: "PERMISSIVE".into(),
            policy: None,
            own_policy: false,
            port_modes: BTreeMap::new(),
        }
    }

    #[test]
    fn the_table() {
        let everybody = [
            workload("web", "10.0.0.1", true),
            workload("old", "10.0.0.2", false),
            workload("cart", "10.0.0.3", true),
        ];
        let seen = |address: &str, last_seen| Seen {
            address: address.into(),
            port: 8080,
            connections: 3,
            open: 0,
            last_seen,
        };
        let mut report = Report::default();
        // No clock but the sidecar's counts; it goes as it likes.
        let now = 10_000_000;
        let callers = vec![
            seen("10.0.0.2", now - 30_500),
            seen("10.9.9.9", now - 7_300_000),
            seen("10.0.0.3", now - 7_300_001),
        ];
        let since = Some(Duration::from_millis(7_300_000));
        report.add("web-1.shop", Page { now, takes_plaintext: true, callers }, &everybody, since);
        report.workloads = everybody.to_vec();
        report.sidecars = ["web-1.shop", "cart-1.shop"].map(Into::into).into();
        report.silent.insert("cart-1.shop".into(), "refused".into());
        assert_eq!(
            report.to_string(),
            "\
NAMESPACE  WORKLOAD  PODS  MODE        PLAINTEXT CALLERS  STRICT WOULD
shop       cart      1     PERMISSIVE  0                  not known: 1 can't be asked
shop       old       1     PERMISSIVE  0                  change nothing: no sidecar
shop       web       1     PERMISSIVE  2                  refuse 2 callers

NAMESPACE  WORKLOAD  PORT  CALLER                 ADDRESS   CONNECTIONS  OPEN  LAST SEEN
shop       web       8080  shop/old (no sidecar)  10.0.0.2  3            0     30s ago
shop       web       8080  -                      10.9.9.9  3            0     2h ago
osier: cart-1.shop can't be asked: refused"
        );
    }

    #[test]
    fn where_mutual_tls_is_off_who_has_a_sidecar_follows() {
        let off = |workload| Workload { mode: "DISABLE".into(), ..workload };
        let everybody = [
            off(workload("web", "10.0.0.1", true)),
            workload("old", "10.0.0.2", false),
            workload("cart", "10.0.0.3", true),
        ];
        let seen = |address: &str, port, connections, open| Seen {
            address: address.into(),
            port,
            connections,
            open,
            last_seen: 5,
        };
        let report = |everybody: &[Workload], callers| {
            let mut report = Report::default();
            report.add("web-1.shop", Page { now: 5, takes_plaintext: true, callers }, everybody, None);
            report.workloads = everybody[..1].to_vec();
            report.sidecars = ["web-1.shop".into()].into();
            report
        };
        let first = report(&everybody, vec![seen("10.0.0.2", 80, 1, 0), seen("10.0.0.3", 80, 1, 1)]);
        assert_eq!(
            first.to_string(),
            "\
NAMESPACE  WORKLOAD  PODS  MODE     PLAINTEXT CALLERS  STRICT WOULD
shop       web       1     DISABLE  2                  refuse 1 caller

NAMESPACE  WORKLOAD  PORT  CALLER                           ADDRESS   CONNECTIONS  OPEN  LAST SEEN
shop       web       80    shop/old (no sidecar)            10.0.0.2  1            0     now
shop       web       80    shop/cart (its sidecar follows)  10.0.0.3  1            1     now"
        );
        // On a port that takes both, it had the choice.
        let mut both = everybody.clone();
        both[0].port_modes.insert("80".into(), "PERMISSIVE".into());
        let at = report(&both, vec![seen("10.0.0.3", 80, 1, 0), seen("10.0.0.3", 81, 1, 0)]);
        assert_eq!(at.callers.iter().map(|c| c.would_follow).collect::<Vec<_>>(), [false, true]);

        let then = vec![seen("10.0.0.2", 80, 1, 0), seen("10.0.0.3", 80, 2, 0), seen("10.0.0.4", 80, 1, 1)];
        let later = report(&everybody, then).calling_since(&first);
        let calling: Vec<&str> = later.callers.iter().map(|caller| &*caller.address).collect();
        assert_eq!(calling, ["10.0.0.3", "10.0.0.4"]);
    }

    #[test]
    fn who_calls_where_a_policy_of_its_own_decides_would_not_be_refused() {
        let mut web = workload("web", "10.0.0.1", true);
        web.port_modes.insert("80".into(), "PERMISSIVE".into());
        let everybody = [web, workload("old", "10.0.0.2", false)];
        let seen = |port| Seen { address: "10.0.0.2".into(), port, connections: 1, open: 0, last_seen: 0 };
        let report = |everybody: &[Workload]| {
            let mut report = Report { workloads: everybody[..1].to_vec(), ..Report::default() };
            report.connected(&[serde_json::json!({"proxy": "web-1.shop", "proxy_type": "sidecar"})]);
            let page = Page { now: 0, takes_plaintext: true, callers: vec![seen(80), seen(81)] };
            report.add("web-1.shop", page, everybody, None);
            report
        };
        let refused = |report: &Report| -> Vec<u16> {
            report
                .callers
                .iter()
                .filter(|caller| caller.would_be_refused())
                .map(|caller| caller.port)
                .collect()
        };
        let at_port = report(&everybody);
        assert_eq!(refused(&at_port), [81]);
        assert_eq!(
            at_port.to_string(),
            "\
NAMESPACE  WORKLOAD  PODS  MODE        PLAINTEXT CALLERS  STRICT WOULD
shop       web       1     PERMISSIVE  1                  refuse 1 caller

NAMESPACE  WORKLOAD  PORT             CALLER                 ADDRESS   CONNECTIONS  OPEN  LAST SEEN
shop       web       80 (own policy)  shop/old (no sidecar)  10.0.0.2  1            0     now
shop       web       81               shop/old (no sidecar)  10.0.0.2  1            0     now"
        );
        let mut own = everybody.clone();
        own[0].own_policy = true;
        let at_workload = report(&own);
        assert!(refused(&at_workload).is_empty());
        assert!(at_workload.to_string().contains("change nothing"), "{at_workload}");
    }

    #[test]
    fn a_sidecar_that_no_pilot_has_is_silent() {
        let everybody = ["web", "lost", "gate"].map(|name| workload(name, "10.0.0.1", true));
        let plain = workload("old", "10.0.0.2", false);
        let mut report =
            Report { workloads: everybody.into_iter().chain([plain]).collect(), ..Report::default() };
        let client = |name: &str, kind: &str| serde_json::json!({"proxy": name, "proxy_type": kind});
        report.connected(&[client("web-1.shop", "sidecar"), client("gate-1.shop", "router")]);
        assert_eq!(report.sidecars, ["web-1.shop".to_owned()].into());
        assert_eq!(report.silent, [("lost-1.shop".to_owned(), NOT_CONNECTED.to_owned())].into());
        let table = report.to_string();
        let row = |name: &str| table.lines().find(|line| line.contains(name)).unwrap_or_default();
        assert!(row("lost").ends_with("not known: 1 can't be asked"), "{table}");
        assert!(
            table.ends_with("osier: lost-1.shop can't be asked: not connected to any pilot that answers"),
            "{table}"
        );
    }
}
