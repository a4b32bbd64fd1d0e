//! The tables as the request path sees them.

use super::*;
use crate::config::route::{HeaderOps, RequireTls};

fn host(name: &str) -> Arc<VirtualHost> {
    Arc::new(VirtualHost {
        name: name.into(),
        routes: Vec::new(),
        headers: HeaderOps::default(),
        require_tls: RequireTls::None,
        attempt_count_in_request: false,
        attempt_count_in_response: false,
    })
}

fn limits(known: usize, absent: usize) -> Limits {
    Limits { known, absent, ..Limits::default() }
}

fn name_of(lookup: HostLookup) -> Option<Arc<str>> {
    match lookup {
        HostLookup::Known(host) => Some(host.name.clone()),
        HostLookup::Absent => None,
        HostLookup::Wait(_) => panic!("not known"),
    }
}

#[test]
fn hosts_are_found_by_exact_key_however_they_are_written() {
    let (on_demand, mut asked) = OnDemand::new(Limits::default());
    let table = on_demand.hosts("80");
    assert!(matches!(table.get("Reviews.Default.:9080", false), HostLookup::Wait(_)));
    assert_eq!(
        asked.try_recv().unwrap(),
        Asked { table: Table::Hosts("80".into()), name: "reviews.default".into() }
    );
    table.publish("reviews.default", Some(host("reviews")));
    for authority in ["reviews.default", "REVIEWS.default.", "reviews.default:80", "reviews.default.:1"] {
        assert_eq!(name_of(table.get(authority, false)).as_deref(), Some("reviews"), "{authority}");
    }
    assert!(
        matches!(table.get("reviews.default:80", true), HostLookup::Wait(_)),
        "explicit proxies keep the port"
    );
    assert!(
        matches!(table.get("a.reviews.default", false), HostLookup::Wait(_)),
        "no domain is evaluated here"
    );
    assert!(
        Arc::ptr_eq(&table, &on_demand.hosts("80")),
        "a table outlasts versions of its route configuration"
    );
}

#[test]
fn what_cannot_be_a_name_is_absent_without_being_asked_for() {
    let (on_demand, mut asked) = OnDemand::new(Limits::default());
    for authority in ["", "*", "a/b", "x y", &"a".repeat(300)] {
        assert!(matches!(on_demand.hosts("80").get(authority, false), HostLookup::Absent));
    }
    assert!(matches!(on_demand.listeners().get_server_name("0.0.0.0_443", "a/b"), ListenerLookup::Absent));
    assert!(asked.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn silence_is_told_from_absence() {
    let (on_demand, _asked) = OnDemand::new(Limits::default());
    let table = on_demand.hosts("80");
    let HostLookup::Wait(wait) = table.get("a", false) else { panic!("unknown") };
    assert!(matches!(wait.answer().await, Answer::Silent));
    let HostLookup::Wait(wait) = table.get("a", false) else { panic!("still unknown") };
    table.publish("a", None);
    assert!(matches!(wait.answer().await, Answer::Absent));
}

fn listener(name: &str) -> Arc<Listener> {
    Arc::new(Listener::plain(name, SocketAddr::from(([0, 0, 0, 0], 80))))
}

#[tokio::test(start_paused = true)]
async fn the_exact_address_wins_over_the_wildcard_and_both_are_asked_for_at_once() {
    let (on_demand, mut asked) = OnDemand::new(Limits::default());
    let table = on_demand.listeners().clone();
    let destination = SocketAddr::from(([10, 0, 0, 1], 80));
    let ListenerLookup::Wait(wait) = table.get(destination) else { panic!("unknown") };
    let names: Vec<_> = std::iter::from_fn(|| asked.try_recv().ok()).map(|a| a.name.to_string()).collect();
    assert_eq!(names, ["10.0.0.1_80", "0.0.0.0_80"]);

    // An answer for the wildcard alone is not enough: the exact one might be there.
    table.publish("0.0.0.0_80", Some(listener("0.0.0.0_80")));
    assert!(matches!(wait.answer().await, Answer::Silent));
    let ListenerLookup::Wait(wait) = table.get(destination) else { panic!("unknown") };
    table.publish("10.0.0.1_80", None);
    let Answer::Known(entry) = wait.answer().await else { panic!("the wildcard is there") };
    assert_eq!(entry.name(), "0.0.0.0_80");

    table.publish("10.0.0.1_80", Some(listener("10.0.0.1_80")));
    let ListenerLookup::Known(entry) = table.get(destination) else { panic!("known") };
    assert_eq!(entry.name(), "10.0.0.1_80");
    table.publish("10.0.0.1_80", None);
    table.publish("0.0.0.0_80", None);
    assert!(matches!(table.get(destination), ListenerLookup::Absent));
    assert!(entry.current().is_none(), "who holds the place sees that the listener is gone");
}

#[test]
fn absent_names_never_push_out_those_that_exist() {
    let (on_demand, _asked) = OnDemand::new(limits(100, 50));
    let table = on_demand.hosts("80");
    for n in 0..100 {
        table.publish(&format!("real-{n}"), Some(host("h")));
    }
    for n in 0..10_000 {
        table.publish(&format!("random-{n}"), None);
        on_demand.trim();
    }
    assert_eq!(on_demand.shared.answered().0, 100);
    assert!(on_demand.shared.answered().1 <= 50);
}

#[test]
fn the_least_recently_used_go_first_and_names_in_use_stay() {
    let (on_demand, _asked) = OnDemand::new(limits(16, 16));
    let table = on_demand.hosts("80");
    for n in 0..16 {
        table.publish(&format!("h{n}"), Some(host(&format!("h{n}"))));
    }
    let HostLookup::Known(held) = table.get("h0", false) else { panic!("known") };
    on_demand.next_epoch();
    for n in 8..16 {
        assert!(name_of(table.get(&format!("h{n}"), false)).is_some());
    }
    on_demand.next_epoch();
    table.publish("h16", Some(host("h16")));
    let out = on_demand.trim();
    assert_eq!(out.len(), 3, "down to the bound and an eighth below: {out:?}");
    for name in &out {
        let n: u32 = name.name[1..].parse().unwrap();
        assert!((1..8).contains(&n), "{n} was used lately or is held");
    }
    drop(held);
}

#[test]
fn idle_names_are_forgotten_and_used_ones_kept() {
    let (on_demand, mut asked) = OnDemand::new(Limits::default());
    let table = on_demand.hosts("80");
    table.publish("idle", Some(host("idle")));
    table.publish("absent", None);
    table.publish("used", Some(host("used")));
    let HostLookup::Wait(wait) = table.get("silent", false) else { panic!("unknown") };
    drop(wait);
    let before = on_demand.next_epoch() - 1;
    assert!(name_of(table.get("used", false)).is_some());
    let mut out: Vec<_> = on_demand.forget_idle(before).into_iter().map(|a| a.name.to_string()).collect();
    out.sort();
    assert_eq!(out, ["absent", "idle", "silent"]);
    assert_eq!(on_demand.recently_used(), [Asked { table: Table::Hosts("80".into()), name: "used".into() }]);
    asked.try_recv().unwrap();
    assert!(matches!(table.get("idle", false), HostLookup::Wait(_)), "the next use asks again");
    assert_eq!(*asked.try_recv().unwrap().name, *"idle");
}
