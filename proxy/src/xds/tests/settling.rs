//! What comes into force when, without a network.

use tokio::time::Instant;

use super::*;
use crate::config::cluster::ClusterHandle;
use crate::config::listener::{Listener, NetworkAction};
use crate::config::route::{RouteTable, VirtualHosts};
use crate::listener::accept::Acceptors;
use crate::on_demand::{HostLookup, Limits, ListenerLookup, OnDemand};
use crate::xds::held::Source;

struct Bench {
    state: State,
    clusters: Arc<Clusters>,
    snapshot: SharedSnapshot,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let (clusters, snapshot) = (Arc::<Clusters>::default(), SharedSnapshot::default());
        let state =
            State::new(clusters.clone(), Default::default(), Arc::default(), snapshot.clone(), None, None);
        Self { state, clusters, snapshot, now: Instant::now() }
    }

    fn on_demand() -> (Self, Arc<OnDemand>) {
        let mut bench = Self::new();
        let (tables, _asked) = OnDemand::new(Limits::default());
        bench.state.set_on_demand(tables.clone());
        (bench, tables)
    }

    fn accept(&mut self, kind: Kind, name: &str, body: Any) -> Option<Instant> {
        self.try_accept(kind, name, body).unwrap_or_else(|e| panic!("{e}"));
        self.state.settle(self.now)
    }

    fn try_accept(&mut self, kind: Kind, name: &str, body: Any) -> Result<(), Rejected> {
        self.state.accept(kind, name, Source::new(body, "1"), self.now)
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        self.state.remove(kind, name);
        self.state.settle(self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.state.settle(self.now);
    }

    fn handle(&self, name: &str) -> Arc<ClusterHandle> {
        self.clusters.handle(name)
    }

    /// Ports of a cluster's endpoints; `None` where the cluster isn't in force.
    fn ports(&self, name: &str) -> Option<Vec<u16>> {
        let cluster = self.handle(name).current.load_full()?;
        let endpoints = cluster.endpoints.load();
        assert!(endpoints.known, "a cluster in force knows its endpoints");
        Some(endpoints.iter().map(|e| e.address.port()).collect())
    }

    fn listener(&self, name: &str) -> Option<Arc<Listener>> {
        self.snapshot.load().listeners.get(name).cloned()
    }

    fn table(&self, listener: &str) -> Option<Arc<RouteTable>> {
        let listener = self.listener(listener)?;
        table(&listener)
    }
}

fn table(listener: &Listener) -> Option<Arc<RouteTable>> {
    match &listener.chains[0].action {
        NetworkAction::Http(manager) => manager.routes.clone(),
        NetworkAction::Tcp(_) => None,
    }
}

#[test]
fn an_eds_cluster_is_visible_after_its_first_endpoints() {
    let mut bench = Bench::new();
    let again = bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    assert_eq!(again, Some(bench.now + Duration::from_secs(15)));
    assert_eq!(bench.ports("c"), None);
    assert!(bench.state.referred(Kind::Assignment).contains("c"));
    bench.accept(Kind::Assignment, "c", assignment("c", &[1, 2]));
    assert_eq!(bench.ports("c"), Some(vec![1, 2]));
    assert!(bench.state.is_settled());
}

#[test]
fn an_eds_cluster_without_an_answer_is_visible_after_its_time() {
    let mut bench = Bench::new();
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    bench.pass(14);
    assert_eq!(bench.ports("c"), None);
    bench.pass(1);
    assert_eq!(bench.ports("c"), Some(vec![]));
    bench.accept(Kind::Assignment, "c", assignment("c", &[1]));
    assert_eq!(bench.ports("c"), Some(vec![1]));

    let source = "{ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}";
    let patient = format!("{{name: p, type: EDS, eds_cluster_config: {{eds_config: {source}}}}}");
    assert_eq!(bench.accept(Kind::Cluster, "p", pack::<cluster::Cluster>(&patient)), None);
    bench.pass(100_000);
    assert_eq!(bench.ports("p"), None, "0 waits for ever");
}

#[test]
fn an_answer_that_there_are_no_endpoints_is_an_answer() {
    let mut bench = Bench::new();
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    bench.remove(Kind::Assignment, "c");
    assert_eq!(bench.ports("c"), Some(vec![]));
    bench.accept(Kind::Assignment, "c", assignment("c", &[1]));
    bench.remove(Kind::Assignment, "c");
    assert_eq!(bench.ports("c"), Some(vec![1]), "who has endpoints keeps them");
}

#[test]
fn a_changed_cluster_keeps_its_endpoints_and_one_from_elsewhere_warms() {
    let mut bench = Bench::new();
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    bench.accept(Kind::Assignment, "c", assignment("c", &[1]));
    let first = bench.handle("c").current.load_full().unwrap();
    bench.accept(Kind::Cluster, "c", eds_cluster("c", "connect_timeout: 9s"));
    let second = bench.handle("c").current.load_full().unwrap();
    assert_eq!(second.spec.connect_timeout, Duration::from_secs(9));
    assert!(Arc::ptr_eq(&first.live, &second.live));
    assert_eq!(bench.ports("c"), Some(vec![1]));

    let elsewhere =
        format!("{{name: c, type: EDS, eds_cluster_config: {{service_name: s, eds_config: {SOURCE}}}}}");
    bench.accept(Kind::Cluster, "c", pack::<cluster::Cluster>(&elsewhere));
    assert_eq!(bench.ports("c"), Some(vec![1]), "the old version serves");
    assert_eq!(bench.state.referred(Kind::Assignment).len(), 2, "both are needed");
    bench.accept(Kind::Assignment, "s", assignment("s", &[2]));
    assert_eq!(bench.ports("c"), Some(vec![2]));
    assert_eq!(bench.state.referred(Kind::Assignment).len(), 1);
}

#[test]
fn equal_content_changes_nothing() {
    let mut bench = Bench::new();
    let all = [
        (Kind::Cluster, "c", eds_cluster("c", "")),
        (Kind::Assignment, "c", assignment("c", &[1])),
        (Kind::Routes, "r", routes("r", "c")),
        (Kind::Listener, "l", http_listener("l", "127.0.0.1:80", "r")),
    ];
    for (kind, name, body) in all.clone() {
        bench.accept(kind, name, body);
    }
    let cluster = bench.handle("c").current.load_full().unwrap();
    let endpoints = cluster.endpoints.load_full();
    let (listener, generation) = (bench.listener("l").unwrap(), bench.snapshot.generation());
    bench.state.references_changed = false;
    for (kind, name, body) in all {
        bench.accept(kind, name, body);
    }
    assert!(Arc::ptr_eq(&cluster, &bench.handle("c").current.load_full().unwrap()));
    assert!(Arc::ptr_eq(&endpoints, &cluster.endpoints.load_full()));
    assert!(Arc::ptr_eq(&listener, &bench.listener("l").unwrap()));
    assert_eq!(generation, bench.snapshot.generation());
    assert!(!bench.state.references_changed);
}

#[test]
fn a_refused_version_changes_nothing_and_is_remembered() {
    let mut bench = Bench::new();
    bench.accept(Kind::Cluster, "c", static_cluster("c"));
    let good = bench.handle("c").current.load_full().unwrap();
    let bad = pack::<cluster::Cluster>("{name: c, connect_timeout: 0s}");
    let error = bench.try_accept(Kind::Cluster, "c", bad).unwrap_err();
    assert_eq!(error.to_string(), "c: connect_timeout: must be at least 1ms");
    bench.pass(1);
    assert!(Arc::ptr_eq(&good, &bench.handle("c").current.load_full().unwrap()));
    let refused = |bench: &Bench| bench.state.clusters.get("c").unwrap().refused.is_some();
    assert!(refused(&bench));
    bench.accept(Kind::Cluster, "c", static_cluster("c"));
    assert!(!refused(&bench), "the good version again: nothing is wrong any more");
}

#[test]
fn a_listener_waits_for_its_routes_and_the_old_one_serves() {
    let mut bench = Bench::new();
    bench.accept(Kind::Listener, "l", http_listener("l", "127.0.0.1:80", "r"));
    assert!(bench.listener("l").is_none());
    assert!(bench.state.referred(Kind::Routes).contains("r"));
    bench.accept(Kind::Routes, "r", routes("r", "c"));
    assert_eq!(&*bench.table("l").unwrap().name, "r");

    bench.accept(Kind::Listener, "l", http_listener("l", "127.0.0.1:80", "s"));
    assert_eq!(&*bench.table("l").unwrap().name, "r", "the old one serves");
    bench.pass(14);
    assert_eq!(&*bench.table("l").unwrap().name, "r");
    bench.pass(1);
    assert!(bench.table("l").is_none(), "without its routes after the time is up");
    bench.accept(Kind::Routes, "s", routes("s", "c"));
    assert_eq!(&*bench.table("l").unwrap().name, "s");
}

#[test]
fn changed_routes_link_only_the_listeners_that_use_them() {
    let mut bench = Bench::new();
    for (name, port) in [("a", 1), ("b", 2)] {
        bench.accept(Kind::Routes, name, routes(name, "c"));
        bench.accept(Kind::Listener, name, http_listener(name, &format!("127.0.0.1:{port}"), name));
    }
    let (a, b) = (bench.listener("a").unwrap(), bench.listener("b").unwrap());
    bench.accept(Kind::Routes, "a", routes("a", "d"));
    assert!(Arc::ptr_eq(&b, &bench.listener("b").unwrap()));
    let new = bench.listener("a").unwrap();
    assert_eq!(new.hash, a.hash, "the listener itself is the same: nothing is bound or closed");
    let VirtualHosts::Known(hosts) = &table(&new).unwrap().hosts else { panic!() };
    assert_eq!(&*target(hosts.catch_all.as_ref().unwrap()).name, "d");
}

#[test]
fn the_bootstrap_file_cannot_be_overruled() {
    let mut bench = Bench::new();
    bench.state.fix(Kind::Cluster, "c", &static_cluster("c"), bench.now).unwrap();
    bench.state.fix(Kind::Listener, "l", &tcp_listener("l", "127.0.0.1:80", "c", ""), bench.now).unwrap();
    bench.state.hold_listeners = true;
    bench.pass(0);
    assert!(bench.listener("l").is_some(), "what needs nobody doesn't wait for the control plane");
    let hash = bench.listener("l").unwrap().hash;
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    bench.accept(Kind::Listener, "l", tcp_listener("l", "127.0.0.1:81", "c", ""));
    bench.remove(Kind::Cluster, "c");
    bench.remove(Kind::Listener, "l");
    assert_eq!(bench.ports("c"), Some(vec![]));
    assert_eq!(bench.listener("l").unwrap().hash, hash);
}

#[test]
fn two_listeners_cannot_have_one_address() {
    let mut bench = Bench::new();
    bench.accept(Kind::Listener, "a", tcp_listener("a", "127.0.0.1:80", "c", ""));
    let error =
        bench.try_accept(Kind::Listener, "b", tcp_listener("b", "127.0.0.1:80", "c", "")).unwrap_err();
    assert_eq!(error.to_string(), "b: address: 127.0.0.1:80 belongs to listener `a` already");
    bench.accept(Kind::Listener, "b", tcp_listener("b", "127.0.0.1:80", "c", "bind_to_port: false"));
    bench.remove(Kind::Listener, "a");
    bench.accept(Kind::Listener, "d", tcp_listener("d", "127.0.0.1:80", "c", ""));
}

/// A listener of both families.
fn of_both(name: &str, port: u16) -> Any {
    tcp_listener(name, &format!("'::', ipv4_compat: true:{port}"), "c", "")
}

#[test]
fn a_listener_of_both_families_has_the_wildcard_address_of_each() {
    let mut bench = Bench::new();
    bench.accept(Kind::Listener, "both", of_both("both", 80));
    bench.accept(Kind::Listener, "exact", tcp_listener("exact", "127.0.0.1:80", "c", ""));
    for (address, taken) in [("0.0.0.0:80", "0.0.0.0:80"), ("'::':80", "[::]:80")] {
        let error = bench.try_accept(Kind::Listener, "x", tcp_listener("x", address, "c", "")).unwrap_err();
        assert_eq!(error.to_string(), format!("x: address: {taken} belongs to listener `both` already"));
    }
    bench.accept(Kind::Listener, "ipv4", tcp_listener("ipv4", "0.0.0.0:81", "c", ""));
    let error = bench.try_accept(Kind::Listener, "y", of_both("y", 81)).unwrap_err();
    assert_eq!(error.to_string(), "y: address: 0.0.0.0:81 belongs to listener `ipv4` already");
}

#[tokio::test]
async fn a_listener_whose_port_is_taken_is_refused_and_what_was_in_force_stays() {
    let mut bench = Bench::new();
    let worker = crate::worker::Worker::here(Arc::default());
    let sockets = Arc::new(Acceptors::new(&[worker], crate::listener::arrival::serve));
    bench.state = State::new(
        bench.clusters.clone(),
        Default::default(),
        Arc::default(),
        bench.snapshot.clone(),
        None,
        Some(sockets),
    );
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = free().local_addr().unwrap();
    bench.accept(Kind::Listener, "l", tcp_listener("l", &good.to_string(), "c", ""));
    let taken = free();
    let address = taken.local_addr().unwrap();
    let moved = tcp_listener("l", &address.to_string(), "c", "");
    let refused = bench.try_accept(Kind::Listener, "l", moved.clone()).expect_err("taken");
    assert_eq!(refused.field, "address");
    assert!(
        refused.reason.contains(&format!("cannot bind {address}: Address already in use")),
        "{}",
        refused.reason
    );
    bench.state.settle(bench.now);
    assert_eq!(bench.listener("l").unwrap().address, good);
    drop(taken);
    let again = Source::new(moved, "2");
    bench.state.accept(Kind::Listener, "l", again, bench.now).unwrap();
    bench.state.settle(bench.now);
    assert_eq!(bench.listener("l").unwrap().address, address);
}

#[test]
fn a_removed_cluster_leaves_its_handle_empty() {
    let mut bench = Bench::new();
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    bench.accept(Kind::Assignment, "c", assignment("c", &[1]));
    let handle = bench.handle("c");
    bench.remove(Kind::Cluster, "c");
    assert!(handle.current.load().is_none());
    assert!(bench.state.referred(Kind::Assignment).is_empty());
    assert!(bench.state.discovered_is_empty());
}

fn host_of(tables: &OnDemand, host: &str) -> Option<Arc<VirtualHost>> {
    match tables.hosts("80").get(host, false) {
        HostLookup::Known(host) => Some(host),
        HostLookup::Absent => None,
        HostLookup::Wait(_) => panic!("{host} is not answered"),
    }
}

fn is_answered(tables: &OnDemand, host: &str) -> bool {
    !matches!(tables.hosts("80").get(host, false), HostLookup::Wait(_))
}

#[test]
fn a_virtual_host_waits_until_every_cluster_is_answered() {
    let (mut bench, tables) = Bench::on_demand();
    bench.accept(Kind::Host, "80/h", virtual_host("v1", "c"));
    assert!(!is_answered(&tables, "h"));
    assert!(bench.state.referred(Kind::Cluster).contains("c"));
    bench.accept(Kind::Cluster, "c", eds_cluster("c", ""));
    assert!(!is_answered(&tables, "h"), "there, but without endpoints");
    bench.accept(Kind::Assignment, "c", assignment("c", &[1]));
    assert_eq!(&*host_of(&tables, "h").unwrap().name, "v1");

    // The next version names a cluster that must come first; the old one serves.
    bench.accept(Kind::Host, "80/h", virtual_host("v2", "d"));
    assert_eq!(&*host_of(&tables, "h").unwrap().name, "v1");
    assert!(bench.state.is_warming(Kind::Host, "80/h"));
    bench.remove(Kind::Cluster, "d");
    assert_eq!(&*host_of(&tables, "h").unwrap().name, "v2", "absent is an answer too");
    assert!(!bench.state.referred(Kind::Cluster).contains("c"), "nobody refers to it any more");
}

#[test]
fn a_virtual_host_waits_five_seconds_at_most() {
    let (mut bench, tables) = Bench::on_demand();
    bench.accept(Kind::Host, "80/h", virtual_host("v1", "c"));
    bench.pass(4);
    assert!(!is_answered(&tables, "h"));
    bench.pass(1);
    let host = host_of(&tables, "h").unwrap();
    assert!(target(&host).current.load().is_none(), "503 with NC until the cluster comes");
    bench.accept(Kind::Cluster, "c", static_cluster("c"));
    assert!(target(&host).current.load().is_some());
}

#[test]
fn a_refused_cluster_is_an_answer() {
    let (mut bench, tables) = Bench::on_demand();
    bench.accept(Kind::Host, "80/h", virtual_host("v1", "c"));
    bench
        .try_accept(Kind::Cluster, "c", pack::<cluster::Cluster>("{name: c, connect_timeout: 0s}"))
        .unwrap_err();
    bench.pass(0);
    assert!(host_of(&tables, "h").is_some());
}

#[test]
fn who_runs_on_an_old_route_keeps_its_clusters() {
    let (mut bench, tables) = Bench::on_demand();
    bench.accept(Kind::Cluster, "a", static_cluster("a"));
    bench.accept(Kind::Cluster, "b", static_cluster("b"));
    bench.accept(Kind::Host, "80/h", virtual_host("v1", "a"));
    let running = host_of(&tables, "h").unwrap();
    bench.accept(Kind::Host, "80/h", virtual_host("v2", "b"));
    assert!(bench.state.referred(Kind::Cluster).contains("a"));
    drop(running);
    assert_eq!(bench.state.referred(Kind::Cluster).into_iter().collect::<Vec<_>>(), [Arc::from("b")]);
}

#[test]
fn listeners_on_demand_go_to_their_table_and_bound_ones_to_the_snapshot() {
    let (mut bench, tables) = Bench::on_demand();
    let _ = tables.listeners().get("10.0.0.1:80".parse().unwrap());
    let _ = tables.listeners().get_server_name("10.0.0.1_80", "a.b");
    bench.accept(Kind::Cluster, "c", static_cluster("c"));
    bench.accept(Kind::Listener, "virtualInbound", tcp_listener("virtualInbound", "0.0.0.0:15006", "c", ""));
    bench.accept(
        Kind::Listener,
        "10.0.0.1_80",
        tcp_listener("10.0.0.1_80", "10.0.0.1:80", "c", "bind_to_port: false"),
    );
    let by_name = tcp_listener("10.0.0.1_80/a.b", "10.0.0.1:80", "c", "bind_to_port: false");
    bench.accept(Kind::Listener, "10.0.0.1_80/a.b", by_name);
    assert_eq!(bench.snapshot.load().listeners.len(), 1);
    assert!(bench.snapshot.load().on_demand.is_some());
    let found = tables.listeners().get("10.0.0.1:80".parse().unwrap());
    let ListenerLookup::Known(entry) = found else { panic!("{found:?}") };
    let unasked = tcp_listener("10.0.0.3_80", "10.0.0.3:80", "c", "bind_to_port: false");
    bench.accept(Kind::Listener, "10.0.0.3_80", unasked);
    assert!(matches!(tables.listeners().get("10.0.0.3:80".parse().unwrap()), ListenerLookup::Wait(_)));
    assert!(matches!(tables.listeners().get_server_name("10.0.0.1_80", "A.B"), ListenerLookup::Known(_)));
    bench.remove(Kind::Listener, "10.0.0.1_80");
    assert!(entry.current().is_none());
}
