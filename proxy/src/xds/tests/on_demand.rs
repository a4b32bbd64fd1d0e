//! The rules of on-demand against a control plane that plays its part, each as a test.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::fake::{Pilot, Proxy, Server, pilot, proxy, sidecar};
use super::*;
use crate::on_demand::{Answer, HostLookup, Limits, ListenerEntry, ListenerLookup, ListenerTable};

async fn running(limits: Limits) -> (Pilot, Proxy) {
    let server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(limits));
    let pilot = Pilot::serve(server);
    pilot.set(
        Kind::Listener,
        "virtualInbound",
        tcp_listener("virtualInbound", "0.0.0.0:15006", "inbound", ""),
    );
    pilot.set(Kind::Cluster, "inbound", static_cluster("inbound"));
    tokio::time::timeout(LONG, proxy.xds.ready()).await.expect("ready");
    (pilot, proxy)
}

impl Proxy {
    fn listeners(&self) -> Arc<ListenerTable> {
        self.snapshot.load().on_demand.clone().expect("agreed to on-demand")
    }

    async fn listener(&self, destination: &str) -> Answer<ListenerEntry> {
        match self.listeners().get(destination.parse().unwrap()) {
            ListenerLookup::Known(entry) => Answer::Known(entry),
            ListenerLookup::Absent => Answer::Absent,
            ListenerLookup::Wait(wait) => wait.answer().await,
        }
    }

    /// The table of hosts behind the HTTP listener of a destination.
    async fn hosts(&self, destination: &str) -> Arc<crate::on_demand::HostTable> {
        use crate::config::{listener::NetworkAction, route::VirtualHosts};
        let Answer::Known(entry) = self.listener(destination).await else {
            panic!("{destination}: no listener")
        };
        let listener = entry.current().expect("there");
        let NetworkAction::Http(manager) = &listener.chains[0].action else { panic!("HTTP") };
        match &manager.routes.as_ref().expect("linked").hosts {
            VirtualHosts::OnDemand(table) => table.clone(),
            VirtualHosts::Known(_) => panic!("on demand"),
        }
    }

    async fn host(&self, host: &str) -> Answer<Arc<VirtualHost>> {
        let table = self.hosts("10.0.0.9:80").await;
        match table.get(host, false) {
            HostLookup::Known(host) => Answer::Known(host),
            HostLookup::Absent => Answer::Absent,
            HostLookup::Wait(wait) => wait.answer().await,
        }
    }

    async fn known_host(&self, host: &str) -> Arc<VirtualHost> {
        match self.host(host).await {
            Answer::Known(host) => host,
            other => panic!("{host}: {other:?}"),
        }
    }
}

/// An HTTP port whose virtual hosts come one by one, and these hosts, each with a cluster of its own name.
fn serve_http(pilot: &Pilot, hosts: &[&str]) {
    let listener = http_listener_with("0.0.0.0_80", "0.0.0.0:80", "80", "bind_to_port: false");
    pilot.set(Kind::Listener, "0.0.0.0_80", listener);
    pilot.set(Kind::Routes, "80", vhds("80"));
    for host in hosts {
        serve_cluster(pilot, host);
        pilot.set(Kind::Host, &format!("80/{host}"), virtual_host(host, host));
    }
}

fn serve_cluster(pilot: &Pilot, name: &str) {
    pilot.set(Kind::Assignment, name, assignment(name, &[1]));
    pilot.set(Kind::Cluster, name, eds_cluster(name, ""));
}

#[tokio::test]
async fn first_use_asks_for_what_it_needs_and_nothing_else() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_http(&pilot, &["a", "b"]);
    let host = proxy.known_host("A:80").await;
    assert_eq!(&*host.name, "a");
    let cluster = target(&host).current.load_full().expect("in force with its virtual host");
    assert_eq!(cluster.endpoints.load().iter().count(), 1);
    for (kind, name) in [
        (Kind::Listener, "10.0.0.9_80"),
        (Kind::Listener, "0.0.0.0_80"),
        (Kind::Routes, "80"),
        (Kind::Host, "80/a"),
        (Kind::Cluster, "a"),
        (Kind::Assignment, "a"),
    ] {
        assert_eq!(pilot.subscribed(kind, name), Some(true), "{kind:?} {name}");
    }
    assert_eq!(pilot.subscribed(Kind::Host, "80/b"), None);
    assert_eq!(pilot.subscribed(Kind::Cluster, "*"), None);
    assert!(pilot.nacks().is_empty());
    assert_eq!(proxy.snapshot.load().listeners.len(), 1, "only what is bound");
}

#[tokio::test]
async fn absence_and_silence_differ() {
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    let (pilot, proxy) = running(limits.clone()).await;
    serve_http(&pilot, &["a"]);
    proxy.hosts("10.0.0.9:80").await;
    pilot.keep_silent_about("80/quiet");
    assert!(matches!(proxy.host("nobody").await, Answer::Absent));
    assert!(matches!(proxy.host("quiet").await, Answer::Silent));
    assert!(matches!(proxy.listener("10.0.0.1:99").await, Answer::Absent));
    pilot.keep_silent_about("10.0.0.2_99");
    assert!(matches!(proxy.listener("10.0.0.2:99").await, Answer::Silent));
    // What is known keeps working, and a late answer is taken.
    assert_eq!(&*proxy.known_host("a").await.name, "a");
    serve_cluster(&pilot, "late");
    pilot.set(Kind::Host, "80/quiet", virtual_host("late", "late"));
    let table = proxy.hosts("10.0.0.9:80").await;
    eventually("the late answer", || matches!(table.get("quiet", false), HostLookup::Known(_)).then_some(()))
        .await;
}

#[tokio::test]
async fn what_is_known_keeps_working_while_pilot_is_away() {
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(limits));
    let mut session = server.session().await;
    session.identity = pilot();
    let first = session.request().await.unwrap();
    assert_eq!(first.resource_names_subscribe, ["virtualInbound"]);
    assert_eq!(first.node.unwrap().client_features[0], "osier.on_demand");
    session.send(Kind::Listener, &[], &["virtualInbound"]).await;
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    let table = proxy.listeners();
    let ListenerLookup::Wait(wait) = table.get("10.0.0.1:80".parse().unwrap()) else { panic!() };
    session
        .request_where(Kind::Listener, |r| r.resource_names_subscribe.contains(&"10.0.0.1_80".into()))
        .await;
    session
        .send(Kind::Listener, &[("10.0.0.1_80", tcp_listener("10.0.0.1_80", "10.0.0.1:80", "c", ""))], &[])
        .await;
    session.request_where(Kind::Cluster, |r| r.resource_names_subscribe == ["c"]).await;
    session.send(Kind::Cluster, &[("c", static_cluster("c"))], &["0.0.0.0_80"]).await;
    assert!(matches!(wait.answer().await, Answer::Known(_)));
    drop((session, server));
    assert!(matches!(table.get("10.0.0.1:80".parse().unwrap()), ListenerLookup::Known(_)));
    assert!(
        matches!(proxy.listener("10.0.0.7:80").await, Answer::Silent),
        "new names are not passed through"
    );
}

#[tokio::test]
async fn the_ack_follows_publication() {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(Limits::default()));
    let mut session = server.session().await;
    session.identity = pilot();
    let inbound = tcp_listener("virtualInbound", "0.0.0.0:15006", "c", "");
    let nonce = session.send(Kind::Listener, &[("virtualInbound", inbound)], &[]).await;
    session.request_where(Kind::Cluster, |r| r.resource_names_subscribe == ["c"]).await;
    assert!(proxy.snapshot.load().listeners.is_empty());
    let clusters = session.send(Kind::Cluster, &[("c", eds_cluster("c", ""))], &[]).await;
    assert_eq!(
        session.verdict(Kind::Cluster, &clusters).await,
        None,
        "clusters and endpoints are never held back"
    );
    session.send(Kind::Assignment, &[("c", assignment("c", &[1]))], &[]).await;
    assert_eq!(session.verdict(Kind::Listener, &nonce).await, None);
    assert!(proxy.snapshot.load().listeners.contains_key("virtualInbound"), "an ACK means in force");
}

#[tokio::test]
async fn what_came_unasked_is_used_when_it_is_asked_for() {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(Limits::default()));
    let mut session = server.session().await;
    session.identity = pilot();
    // Ahead of the listener that needs them, as pilot does it.
    session.send(Kind::Cluster, &[("c", eds_cluster("c", ""))], &[]).await;
    session.send(Kind::Assignment, &[("c", assignment("c", &[1]))], &[]).await;
    let inbound = tcp_listener("virtualInbound", "0.0.0.0:15006", "c", "");
    session.send(Kind::Listener, &[("virtualInbound", inbound)], &[]).await;
    // No answer to the subscriptions that follow: nothing is waited for.
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    assert!(proxy.snapshot.load().listeners.contains_key("virtualInbound"));
    assert!(proxy.clusters.get("c").unwrap().current.load().is_some());
    session.request_where(Kind::Cluster, |r| r.resource_names_subscribe == ["c"]).await;
}

#[tokio::test]
async fn a_control_plane_that_knows_no_on_demand_is_asked_for_everything() {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(Limits::default()));
    let mut session = server.session().await;
    session.request().await.unwrap();
    session.send(Kind::Listener, &[], &["virtualInbound"]).await;
    let mut session = server.session().await;
    let request = session.request().await.unwrap();
    assert_eq!(request.node.unwrap().client_features, osier_proto::schema::UNDERSTOOD);
    assert!(request.resource_names_subscribe.is_empty() || request.resource_names_subscribe == ["*"]);
    session.send(Kind::Cluster, &[("c", static_cluster("c"))], &[]).await;
    session.send(Kind::Listener, &[("l", tcp_listener("l", "127.0.0.1:80", "c", ""))], &[]).await;
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    assert!(proxy.snapshot.load().listeners.contains_key("l"));
    assert!(proxy.snapshot.load().on_demand.is_none());
}

#[tokio::test]
async fn a_later_exact_host_replaces_the_wildcard_that_answered_and_gives_way_again() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_http(&pilot, &["exact"]);
    serve_cluster(&pilot, "wildcard");
    // `*.example.com` and `*.com` overlap; pilot alone decides, and answers under the name that was asked for.
    pilot.set(Kind::Host, "80/a.example.com", virtual_host("*.example.com", "wildcard"));
    let table = proxy.hosts("10.0.0.9:80").await;
    assert_eq!(&*proxy.known_host("a.example.com").await.name, "*.example.com");
    let becomes = async |wanted: &str| {
        eventually(wanted, || match table.get("a.example.com", false) {
            HostLookup::Known(host) => (&*host.name == wanted).then_some(()),
            _ => panic!("the name stays answered"),
        })
        .await;
    };
    pilot.set(Kind::Host, "80/a.example.com", virtual_host("a.example.com", "exact"));
    becomes("a.example.com").await;
    pilot.set(Kind::Host, "80/a.example.com", virtual_host("*.com", "wildcard"));
    becomes("*.com").await;
}

#[tokio::test]
async fn an_alias_that_is_removed_is_absent() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_http(&pilot, &["real"]);
    pilot.set(Kind::Host, "80/alias", virtual_host("real", "real"));
    assert_eq!(&*proxy.known_host("alias").await.name, "real");
    proxy.known_host("real").await;
    pilot.remove(Kind::Host, "80/alias");
    let table = proxy.hosts("10.0.0.9:80").await;
    eventually("absence", || matches!(table.get("alias", false), HostLookup::Absent).then_some(())).await;
    assert_eq!(&*proxy.known_host("real").await.name, "real");
    assert_eq!(pilot.subscribed(Kind::Cluster, "real"), Some(true));
    pilot.remove(Kind::Host, "80/real");
    eventually("release", || (pilot.subscribed(Kind::Cluster, "real") == Some(false)).then_some(())).await;
}

/// Routes are edited to subsets that were never used while requests look them up: no request finds an empty cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_subset_route_is_edited_under_load() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_http(&pilot, &["reviews"]);
    proxy.known_host("reviews").await;
    let table = proxy.hosts("10.0.0.9:80").await;
    let stop = Arc::new(AtomicBool::new(false));
    let requests = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (table, stop, requests) = (table.clone(), stop.clone(), requests.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let HostLookup::Known(host) = table.get("reviews", false) else {
                        panic!("known all along")
                    };
                    let handle = target(&host);
                    let cluster =
                        handle.current.load_full().unwrap_or_else(|| panic!("{} is empty", handle.name));
                    assert!(cluster.endpoints.load().iter().count() > 0, "{} has nobody", handle.name);
                    requests.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for n in 0..30 {
        let subset = format!("subset-{n}");
        serve_cluster(&pilot, &subset);
        pilot.set(Kind::Host, "80/reviews", virtual_host(&subset, &subset));
        eventually(&subset, || match table.get("reviews", false) {
            HostLookup::Known(host) => (*host.name == *subset).then_some(()),
            _ => panic!("known all along"),
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    assert!(requests.load(Ordering::Relaxed) > 0);
    eventually("old subsets go", || {
        // The release of the last one is noticed with the next change.
        pilot.set(Kind::Host, "80/reviews", virtual_host("reviews", "reviews"));
        (0..28).all(|n| pilot.subscribed(Kind::Cluster, &format!("subset-{n}")) == Some(false)).then_some(())
    })
    .await;
    assert!(pilot.nacks().is_empty(), "{:?}", pilot.nacks());
}

#[tokio::test]
async fn idle_names_are_forgotten_with_everything_that_only_they_needed() {
    let limits = Limits { idle: Duration::from_millis(400), ..Limits::default() };
    let (pilot, proxy) = running(limits).await;
    serve_http(&pilot, &["idle", "busy"]);
    proxy.known_host("idle").await;
    proxy.known_host("busy").await;
    let Answer::Known(held) = proxy.listener("10.0.0.9:80").await else { panic!() };
    let table = proxy.hosts("10.0.0.9:80").await;
    eventually("forgetting", || {
        assert!(matches!(table.get("busy", false), HostLookup::Known(_)));
        (pilot.subscribed(Kind::Cluster, "idle") == Some(false)).then_some(())
    })
    .await;
    assert_eq!(pilot.subscribed(Kind::Host, "80/idle"), Some(false));
    assert_eq!(pilot.subscribed(Kind::Assignment, "idle"), Some(false));
    assert_eq!(pilot.subscribed(Kind::Host, "80/busy"), Some(true));
    assert_eq!(pilot.subscribed(Kind::Listener, "0.0.0.0_80"), Some(true), "an open connection holds it");
    assert!(held.current().is_some());
    assert!(
        proxy.snapshot.load().listeners.contains_key("virtualInbound"),
        "what is bound is never forgotten"
    );
    assert_eq!(&*proxy.known_host("idle").await.name, "idle", "and asked for again at the next use");
}

#[tokio::test]
async fn the_names_of_the_last_run_are_asked_for_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let mode = || {
        Mode::OnDemand(Sidecar {
            listeners: vec!["virtualInbound".into()],
            limits: Limits::default(),
            state_file: Some(folder.path().join("names.json")),
        })
    };
    let server = Server::start().await;
    let target = server.target.clone();
    let pilot = Pilot::serve(server);
    serve_http(&pilot, &["a"]);
    let first = proxy(&target, mode());
    tokio::time::timeout(LONG, first.xds.ready()).await.unwrap();
    first.known_host("a").await;
    first.xds.save().await;
    drop(first);

    let second = proxy(&target, mode());
    tokio::time::timeout(LONG, second.xds.ready()).await.unwrap();
    let handle =
        eventually("prefetch", || second.clusters.get("a").filter(|h| h.current.load().is_some())).await;
    let table = second.hosts("10.0.0.9:80").await;
    eventually("the host", || matches!(table.get("a", false), HostLookup::Known(_)).then_some(())).await;
    drop(handle);
}

#[tokio::test]
async fn chains_by_sni_are_asked_for_one_by_one() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_cluster(&pilot, "shop");
    serve_cluster(&pilot, "passthrough");
    let many = "bind_to_port: false, metadata: {filter_metadata: {osier: {chains_by_server_name: true}}}";
    pilot.set(Kind::Listener, "0.0.0.0_443", tcp_listener("0.0.0.0_443", "0.0.0.0:443", "passthrough", many));
    let chain = tcp_listener("0.0.0.0_443/shop.example", "0.0.0.0:443", "shop", "bind_to_port: false");
    pilot.set(Kind::Listener, "0.0.0.0_443/shop.example", chain);
    let Answer::Known(entry) = proxy.listener("10.0.0.1:443").await else { panic!() };
    assert!(entry.current().unwrap().chains_by_server_name);
    let answer = async |name: &str| match proxy.listeners().get_server_name(entry.name(), name) {
        ListenerLookup::Known(entry) => Answer::Known(entry),
        ListenerLookup::Absent => Answer::Absent,
        ListenerLookup::Wait(wait) => wait.answer().await,
    };
    let Answer::Known(found) = answer("Shop.Example").await else { panic!() };
    assert_eq!(&*found.current().unwrap().name, "0.0.0.0_443/shop.example");
    assert!(matches!(answer("other.example").await, Answer::Absent));
}

#[tokio::test]
async fn a_refused_virtual_host_keeps_the_version_before() {
    let (pilot, proxy) = running(Limits::default()).await;
    serve_http(&pilot, &["a"]);
    proxy.known_host("a").await;
    let bad = pack::<route::VirtualHost>(
        "{name: bad, routes: [{match: {prefix: /}, route: {cluster: a, timeout: -1s}}]}",
    );
    pilot.set(Kind::Host, "80/a", bad);
    let nack = eventually("a NACK", || pilot.nacks().pop()).await;
    assert_eq!(nack, "80/a: routes[0].route.timeout: must not be negative");
    assert_eq!(&*proxy.known_host("a").await.name, "a");
}

/// Interception mode NONE: what is bound comes by wildcard, and names come and go beside it.
#[tokio::test]
async fn bound_listeners_come_by_wildcard() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start().await;
    let mode = Mode::OnDemand(Sidecar { listeners: vec!["*".into()], limits, state_file: None });
    let proxy = proxy(&server.target, mode);
    let pilot = Pilot::serve(server);
    pilot.set(Kind::Listener, "virtualInbound", tcp_listener("virtualInbound", "0.0.0.0:15006", "c", ""));
    serve_cluster(&pilot, "c");
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    let unbound = tcp_listener("10.0.0.1_80", "10.0.0.1:80", "c", "bind_to_port: false");
    pilot.set(Kind::Listener, "10.0.0.1_80", unbound.clone());
    pilot.set(
        Kind::Listener,
        "redis_6379",
        tcp_listener("redis_6379", "10.0.0.2:6379", "c", "bind_to_port: false"),
    );
    // Used, forgotten, and used again, some times over.
    for _ in 0..5 {
        let Answer::Known(entry) = proxy.listener("10.0.0.1:80").await else { panic!("there") };
        assert_eq!(&*entry.current().unwrap().name, "10.0.0.1_80");
        drop(entry);
        eventually("forgetting", || {
            (pilot.subscribed(Kind::Listener, "10.0.0.1_80") == Some(false)).then_some(())
        })
        .await;
    }
    let host = match proxy.listeners().get_host("Redis:6379") {
        ListenerLookup::Known(entry) => Answer::Known(entry),
        ListenerLookup::Absent => Answer::Absent,
        ListenerLookup::Wait(wait) => wait.answer().await,
    };
    assert!(matches!(host, Answer::Known(_)), "{host:?}");
    let snapshot = proxy.snapshot.load();
    assert_eq!(snapshot.listeners.keys().collect::<Vec<_>>(), [&Arc::from("virtualInbound")]);
    assert!(pilot.nacks().is_empty(), "{:?}", pilot.nacks());
}

/// After a roll-back of pilot: what was got by name serves until the full set is there.
#[tokio::test]
async fn a_control_plane_that_no_longer_knows_on_demand_is_asked_for_everything() {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, sidecar(Limits::default()));
    let mut session = server.session().await;
    session.identity = pilot();
    session.send(Kind::Cluster, &[("c", static_cluster("c"))], &[]).await;
    let inbound = tcp_listener("virtualInbound", "0.0.0.0:15006", "c", "");
    session.send(Kind::Listener, &[("virtualInbound", inbound.clone())], &[]).await;
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    let table = proxy.listeners();
    let ListenerLookup::Wait(wait) = table.get("10.0.0.1:80".parse().unwrap()) else { panic!() };
    let unbound = tcp_listener("10.0.0.1_80", "10.0.0.1:80", "c", "bind_to_port: false");
    session.send(Kind::Listener, &[("10.0.0.1_80", unbound.clone())], &["0.0.0.0_80"]).await;
    assert!(matches!(wait.answer().await, Answer::Known(_)));
    drop(session);

    let mut session = server.session().await;
    session.send(Kind::Listener, &[], &[]).await;
    let mut session = server.session().await;
    let request = session.request().await.unwrap();
    assert_eq!(request.node.unwrap().client_features, osier_proto::schema::UNDERSTOOD);
    assert!(proxy.snapshot.load().on_demand.is_some(), "nothing is passed through meanwhile");
    session.send(Kind::Cluster, &[("c", static_cluster("c"))], &[]).await;
    let resources = [("virtualInbound", inbound), ("10.0.0.1_80", unbound)];
    session.send(Kind::Listener, &resources, &[]).await;
    eventually("the full set", || (proxy.snapshot.load().listeners.len() == 2).then_some(())).await;
    assert!(proxy.snapshot.load().on_demand.is_none());
}
