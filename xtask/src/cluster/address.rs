//! The load balancer's address controller: gives each Service of type LoadBalancer an address of 10.97.0.0/24.
//!
//! No address is put on any link: kube-proxy serves it on this node and for its pods, which is where tests are. A requested
//! `spec.loadBalancerIP` is honoured when it is free and in the pool. What is given is in the Services' own status, so a controller
//! that starts again knows it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::place::{BALANCER, Place};
use super::{daemon, kubectl};

/// Starts the controller: this program once more.
pub fn start(place: &Place) -> Result<()> {
    // A copy: a build may remove the program from its place while it runs.
    let copy = place.program("load-balancer");
    if !daemon::is_running(place, "load-balancer") {
        std::fs::copy("/proc/self/exe", &copy).context("cannot copy this program")?;
    }
    daemon::start(place, "load-balancer", &copy, ["cluster", "assign-addresses"]).map(|_| ())
}

/// Watches Services and gives addresses until the process is ended.
pub fn assign(place: &Place) -> Result<bool> {
    loop {
        // A watch ends by itself now and then; the next one begins with all that is there.
        if let Err(error) = watch(place) {
            eprintln!("{error:#}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn watch(place: &Place) -> Result<()> {
    let list: ServiceList = serde_json::from_str(&kubectl::output(
        place,
        &["get", "services", "--all-namespaces", "--output=json"],
    )?)?;
    let mut pool = Pool::default();
    // Those that have an address first: nobody is given what another one has.
    list.items.iter().for_each(|service| pool.keep(service));
    let arguments =
        ["get", "services", "--all-namespaces", "--watch", "--output-watch-events", "--output=json"];
    let mut child = kubectl::command(place, arguments)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let events = serde_json::Deserializer::from_reader(child.stdout.take().context("kubectl writes")?);
    let outcome = follow(place, &mut pool, events.into_iter());
    let _ = child.kill();
    child.wait()?;
    outcome
}

fn follow(
    place: &Place,
    pool: &mut Pool,
    events: impl Iterator<Item = serde_json::Result<Event>>,
) -> Result<()> {
    for event in events {
        let event = event.context("the watch of Services broke")?;
        let service = &event.object;
        if event.kind == "DELETED" || service.spec.kind != "LoadBalancer" {
            pool.give_back(service);
        } else if service.address().is_some() {
            pool.keep(service);
        } else if let Some(address) = pool.take(service) {
            publish(place, service, address);
        } else {
            eprintln!("{}: no address for it", service.name());
        }
    }
    Ok(())
}

/// Writes the address into the Service's status. A Service that is gone by then is no error: its deletion follows.
fn publish(place: &Place, service: &Service, address: Ipv4Addr) {
    let status = serde_json::json!({
        "status": { "loadBalancer": { "ingress": [{ "ip": address.to_string(), "ipMode": "VIP" }] } }
    });
    let (namespace, patch) =
        (format!("--namespace={}", service.metadata.namespace), format!("--patch={status}"));
    let name = &service.metadata.name;
    let arguments = ["patch", "service", name, &namespace, "--subresource=status", "--type=merge", &patch];
    match kubectl::output(place, &arguments) {
        Ok(_) => println!("{}: {address}", service.name()),
        Err(error) => eprintln!("{error:#}"),
    }
}

/// Which Service has which address.
#[derive(Default)]
struct Pool {
    taken: BTreeMap<Ipv4Addr, String>,
}

impl Pool {
    /// Notes the address that a Service has.
    fn keep(&mut self, service: &Service) {
        if let Some(address) = service.address() {
            self.taken.insert(address, service.name());
        }
    }

    /// An address for it: the one that it asks for, else the first free one.
    fn take(&mut self, service: &Service) -> Option<Ipv4Addr> {
        let name = service.name();
        let [a, b, c] = BALANCER;
        let free = |address: &Ipv4Addr| self.taken.get(address).is_none_or(|owner| *owner == name);
        let mut addresses = (1..=254).map(|d| Ipv4Addr::new(a, b, c, d));
        let address = match service.spec.wanted {
            Some(wanted) => addresses.find(|address| *address == wanted).filter(free)?,
            None => addresses.find(free)?,
        };
        self.taken.insert(address, name);
        Some(address)
    }

    fn give_back(&mut self, service: &Service) {
        let name = service.name();
        self.taken.retain(|_, owner| *owner != name);
    }
}

#[derive(Deserialize)]
struct ServiceList {
    items: Vec<Service>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Service,
}

#[derive(Deserialize)]
struct Service {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

impl Service {
    fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    fn address(&self) -> Option<Ipv4Addr> {
        self.status.balancer.ingress.first()?.ip
    }
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "loadBalancerIP")]
    wanted: Option<Ipv4Addr>,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(rename = "loadBalancer", default)]
    balancer: Balancer,
}

#[derive(Deserialize, Default)]
struct Balancer {
    #[serde(default)]
    ingress: Vec<Ingress>,
}

#[derive(Deserialize)]
struct Ingress {
    ip: Option<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, wanted: Option<[u8; 4]>, has: Option<[u8; 4]>) -> Service {
        Service {
            metadata: Metadata { name: name.into(), namespace: "default".into() },
            spec: Spec { kind: "LoadBalancer".into(), wanted: wanted.map(Ipv4Addr::from) },
            status: Status { balancer: Balancer { ingress: vec![Ingress { ip: has.map(Ipv4Addr::from) }] } },
        }
    }

    #[test]
    fn nobody_is_given_what_another_one_has() {
        let mut pool = Pool::default();
        pool.keep(&service("old", None, Some([10, 97, 0, 1])));
        assert_eq!(pool.take(&service("a", None, None)), Some([10, 97, 0, 2].into()));
        assert_eq!(pool.take(&service("b", Some([10, 97, 0, 9]), None)), Some([10, 97, 0, 9].into()));
        assert_eq!(pool.take(&service("c", Some([10, 97, 0, 9]), None)), None, "taken");
        assert_eq!(pool.take(&service("c", Some([10, 98, 0, 9]), None)), None, "not in the pool");
        pool.give_back(&service("old", None, None));
        assert_eq!(pool.take(&service("c", None, None)), Some([10, 97, 0, 1].into()));
    }

    #[test]
    fn the_pool_has_an_end() {
        let mut pool = Pool::default();
        let given = (0..300).filter_map(|n| pool.take(&service(&n.to_string(), None, None))).count();
        assert_eq!(given, 254);
    }
}
