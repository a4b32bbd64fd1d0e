//! What pilots know of workloads, and sidecars of their callers, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::{self, table};
use crate::reach::Mesh;

/// Sidecars that are asked at once.
const AT_ONCE: usize = 16;

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
    /// Of PeerAuthentication; `port_modes` are the exceptions.
    pub mode: String,
    /// Which one says it, as `namespace/name`.
    pub policy: Option<String>,
    pub port_modes: BTreeMap<String, String>,
}

impl Workload {
    /// What holds for one of its ports.
    fn mode_at(&self, port: u16) -> &str {
        self.port_modes.get(&port.to_string()).unwrap_or(&self.mode)
    }

    /// Another policy of its namespace than this one decides: it selects the workload.
    pub(super) fn has_its_own(&self, policy: &str) -> bool {
        let of_namespace = |own: &str| own.split_once('/').is_some_and(|(of, _)| of == self.namespace);
        self.policy.as_deref().is_some_and(|own| own != policy && of_namespace(own))
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
    pub address: String,
    pub connections: u64,
    pub open: u32,
    /// Milliseconds since 1970.
    pub last_seen: u64,
}

/// What a sidecar says.
#[derive(Debug, Clone, Deserialize)]
struct Page {
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
    pub workloads: Vec<Workload>,
    pub callers: Vec<Caller>,
    /// Those that are connected to a pilot.
    pub sidecars: BTreeSet<String>,
    /// Those that take plaintext.
    pub taking_plaintext: BTreeSet<String>,
    /// Those that could not be asked, and why.
    pub silent: BTreeMap<String, String>,
}

impl Report {
    /// Asks everybody.
    pub(super) async fn read(mesh: &Mesh, namespace: Option<&str>, since: Option<Duration>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (_, page) in mesh.of_pilots("/debug/workloadz").await? {
            let known: Vec<Workload> = serde_json::from_value(page)?;
            all.extend(known.into_iter().map(|w| ((w.namespace.clone(), w.name.clone()), w)));
        }
        let everybody: Vec<Workload> = all.into_values().collect();
        let is_shown = |of: &str| namespace.is_none_or(|namespace| namespace == of);
        let clients = mesh.clients().await?;
        let sidecars = clients.iter().filter(|client| client["proxy_type"] == "sidecar");
        let names: BTreeSet<&str> = sidecars.filter_map(|client| client["proxy"].as_str()).collect();
        let names =
            names.into_iter().filter(|name| name.rsplit_once('.').is_some_and(|(_, of)| is_shown(of)));
        let pages: Vec<(&str, Result<Page>)> =
            stream::iter(names.map(async |name| (name, ask(mesh, name).await)))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
        let mut report = Self::default();
        let oldest = since.map_or(0, |since| millis(SystemTime::now() - since));
        for (name, page) in pages {
            report.sidecars.insert(name.to_owned());
            match page {
                Ok(page) => report.add(name, page, &everybody, oldest),
                Err(error) => drop(report.silent.insert(name.to_owned(), format!("{error:#}"))),
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
        report.workloads = everybody.into_iter().filter(|workload| is_shown(&workload.namespace)).collect();
        Ok(report)
    }

    fn add(&mut self, name: &str, page: Page, everybody: &[Workload], oldest: u64) {
        let (pod, namespace) = name.rsplit_once('.').unwrap_or((name, ""));
        if page.takes_plaintext {
            self.taking_plaintext.insert(name.to_owned());
        }
        let own = everybody.iter().find(|w| w.name == pod && w.namespace == namespace);
        for seen in page.callers.into_iter().filter(|seen| seen.last_seen >= oldest) {
            let caller = everybody.iter().find(|w| w.addresses.contains(&seen.address));
            let caller_has_sidecar = caller.is_some_and(|w| w.takes_mutual_tls);
            let off = own.is_some_and(|w| w.mode_at(seen.port) == "DISABLE");
            self.callers.push(Caller {
                namespace: namespace.to_owned(),
                workload: own.map_or(pod, |w| &w.workload).to_owned(),
                pod: pod.to_owned(),
                port: seen.port,
                caller: caller.map(|w| format!("{}/{}", w.namespace, w.workload)),
                caller_has_sidecar,
                would_follow: caller_has_sidecar && off,
                address: seen.address,
                connections: seen.connections,
                open: seen.open,
                last_seen: seen.last_seen,
            });
        }
    }
}

async fn ask(mesh: &Mesh, name: &str) -> Result<Page> {
    let admin = mesh.admin(name).await?;
    let page: Value = mesh.page(&admin, "/plaintext_callers").await?;
    Ok(serde_json::from_value(page)?)
}

fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// How long ago, as kubectl says ages.
fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then) / 1000;
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
            let refused = addresses(callers().filter(|caller| !caller.would_follow));
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
        let strict = |w: &Workload| w.mode == "STRICT" && w.port_modes.is_empty();
        let has_sidecar = |w: &Workload| self.sidecars.contains(&format!("{}.{}", w.name, w.namespace));
        let without_certificate = pods.iter().any(|w| has_sidecar(w) && !w.takes_mutual_tls);
        if pods.iter().all(|w| strict(w)) {
            return "change nothing".to_owned();
        }
        match callers {
            _ if without_certificate => "refuse everybody: no certificate".to_owned(),
            _ if !pods.iter().any(|w| has_sidecar(w)) => "change nothing: no sidecar".to_owned(),
            0 => "break nothing that was seen".to_owned(),
            1 => "refuse 1 caller".to_owned(),
            callers => format!("refuse {callers} callers"),
        }
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
    let now = millis(SystemTime::now());
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
            caller.port.to_string(),
            name,
            caller.address.clone(),
            caller.connections.to_string(),
            caller.open.to_string(),
            ago(caller.last_seen, now),
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
        let ports: String = w.port_modes.iter().map(|(port, mode)| format!(" {port}:{mode}")).collect();
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
        let now = millis(SystemTime::now());
        let callers =
            vec![seen("10.0.0.2", now - 30_500), seen("10.9.9.9", now - 7_300_000), seen("10.0.0.3", 5)];
        report.add("web-1.shop", Page { takes_plaintext: true, callers }, &everybody, 10);
        report.workloads = everybody.to_vec();
        report.sidecars = ["web-1.shop", "cart-1.shop"].map(Into::into).into();
        report.silent.insert("cart-1.shop".into(), "refused".into());
        assert_eq!(
            report.to_string(),
            "\
NAMESPACE  WORKLOAD  PODS  MODE        PLAINTEXT CALLERS  STRICT WOULD
shop       cart      1     PERMISSIVE  0                  break nothing that was seen
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
        let now = millis(SystemTime::now());
        let seen = |address: &str, port, connections, open| Seen {
            address: address.into(),
            port,
            connections,
            open,
            last_seen: now,
        };
        let report = |everybody: &[Workload], callers| {
            let mut report = Report::default();
            report.add("web-1.shop", Page { takes_plaintext: true, callers }, everybody, 0);
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
}
