//! Requests that a policy denies: what the client gets, what the log says, and that nobody else hears of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::rig::*;
use crate::authz::counters::Tally;
use crate::authz::{Action, Condition, Denial, Filter, Rule, Rules};
use crate::config::listener::{Direction, HttpManager, Normalize};
use crate::config::route::{PathMatch, PathRewrite, Route, Text, ValueMatch};
use crate::config::snapshot::Snapshot;
use crate::http::test_support::{manager, path_match};
use crate::worker::Shared;

fn prefix(text: &str) -> Text {
    Text { value: text.as_bytes().into(), ignore_case: false }
}

fn on_path(exact: &str) -> Condition {
    Condition::Path(ValueMatch::Exact(Text { value: exact.as_bytes().into(), ignore_case: false }))
}

fn rules(action: Action, path: &str, count: &Arc<AtomicU64>) -> Rules {
    let denial = Denial::new("ns[a]-policy[b]-rule[0]", count.clone());
    let rule = Rule { condition: on_path(path), denial };
    Rules { action, rules: Box::new([rule]), unmatched: Denial::new("none", count.clone()) }
}

fn enforced(rules: Rules) -> Filter {
    Filter { enforced: Some((rules, Arc::default())), shadow: None }
}

async fn proxy(shared: Shared, mirror: &Upstream, filters: Vec<Filter>) -> Proxy {
    let route = to(&cluster(&[mirror.address], |_| {}), |_| {});
    let change = |manager: &mut HttpManager| {
        manager.authorization = filters.into();
        manager.normalize = Normalize { path: true, ..Normalize::default() };
    };
    Proxy::beside(Arc::new(shared), Direction::Inbound, table(host(vec![route])), change).await
}

#[tokio::test]
async fn a_denied_request_is_answered_as_istio_does_and_goes_nowhere() {
    let (mirror, count) = (mirror().await, Arc::default());
    let filters = vec![enforced(rules(Action::Deny, "/admin", &count))];
    let proxy = proxy(Shared::default(), &mirror, filters).await;
    let mut client = proxy.client().await;
    for path in ["/admin", "/admin?x=1", "/x/../admin", "/%61dmin", "/x/..\\admin"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status(), &*reply.body), (403, "RBAC: access denied"), "{path}");
        assert_eq!(
            (reply.get("content-type"), reply.get("content-length")),
            (Some("text/plain"), Some("19"))
        );
        assert_eq!(reply.get("x-osier-denied-by"), None);
    }
    client.send("GET /admin HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status(), &*reply.body), (200, ""));
    assert_eq!(
        (reply.get("grpc-status"), reply.get("grpc-message")),
        (Some("7"), Some("RBAC: access denied"))
    );
    // A target that is no path never gets so far.
    assert_eq!(proxy.ask("GET \\admin HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 400);
    assert_eq!(mirror.connections(), 0);
    client.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.reply().await.status(), 200);
    assert_eq!(count.load(Relaxed), 6);
    let log = proxy.log(8).await;
    // The route and the cluster are those that it would have had.
    let denied = "403 - rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]] 0 19 0 all backend";
    assert_eq!(log[0], denied, "{log:?}");
    assert!(proxy.metrics().contains("response_code=\"403\""), "{}", proxy.metrics());
}

#[tokio::test]
async fn what_no_policy_allows_is_denied_and_a_shadow_only_counts() {
    let (mirror, count, shadowed) = (mirror().await, Arc::default(), Arc::<AtomicU64>::default());
    let tally = Arc::<Tally>::default();
    let shadow = rules(Action::Deny, "/only", &shadowed);
    let filters = vec![
        Filter { enforced: None, shadow: Some((shadow, tally.clone())) },
        enforced(rules(Action::Allow, "/only", &count)),
    ];
    let shared = Shared { names_policies: true, ..Shared::default() };
    let proxy = proxy(shared, &mirror, filters).await;
    assert_eq!(proxy.ask("GET /only HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
    let reply = proxy.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), reply.get("x-osier-denied-by")), (403, Some("none")));
    assert_eq!((count.load(Relaxed), shadowed.load(Relaxed), tally.sums()), (1, 1, (1, 1)));
    let log = proxy.log(2).await;
    assert!(log[1].starts_with("403 - rbac_access_denied_matched_policy[none] "), "{log:?}");
}

/// An upstream that answers by path: not at all, by half until it is told to go on, or with an upgrade.
async fn slow(go_on: Arc<Notify>) -> Upstream {
    upstream(move |_, mut client| {
        let go_on = go_on.clone();
        async move {
            let Some(head) = client.head().await else { return };
            if head.starts_with("GET /chat") {
                client.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhi").await;
            } else if !head.starts_with("GET /silent") {
                client.send("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await;
                go_on.notified().await;
                client.send("rest").await;
            }
            client.rest_quietly().await;
        }
    })
    .await
}

#[tokio::test]
async fn what_is_open_ends_where_a_new_policy_denies_it_and_goes_on_where_not() {
    let go_on = Arc::new(Notify::new());
    let upstream = slow(go_on.clone()).await;
    let cluster = cluster(&[upstream.address], |_| {});
    let renamed = to(&cluster, |forward| forward.rewrite = PathRewrite::Prefix(b"/else".as_slice().into()));
    let routes = vec![
        Route { matches: path_match(PathMatch::Prefix(prefix("/old"))), ..renamed },
        to(&cluster, |forward| forward.upgrades = vec![("websocket".into(), true)]),
    ];
    let proxy = Proxy::beside(Arc::default(), Direction::Inbound, table(host(routes)), |_| {}).await;
    let open = async |path: &str, more: &str| {
        let mut client = proxy.client().await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n")).await;
        client
    };
    let mut silent = open("/silent", "").await;
    let [mut half, mut old, mut free] =
        [open("/half", "").await, open("/old", "").await, open("/free", "").await];
    let mut chat = open("/chat", "connection: upgrade\r\nupgrade: websocket\r\n").await;
    let heads = [half.head().await.unwrap(), old.head().await.unwrap(), free.head().await.unwrap()];
    assert!(chat.head().await.unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(chat.exactly(2).await, b"hi");

    let count = Arc::default();
    let denied = ["/silent", "/half", "/old", "/chat"];
    let filters = denied.map(|path| enforced(rules(Action::Deny, path, &count)));
    let policed = HttpManager { authorization: filters.into(), ..manager() };
    let publish = |manager| {
        let listener = Arc::new(listener(proxy.address, Direction::Inbound, manager));
        proxy.worker.shared.snapshot.publish(Snapshot::new([listener]));
    };
    publish(policed);
    let reply = silent.reply().await;
    assert_eq!((reply.status(), &*reply.body), (403, "RBAC: access denied"));
    assert_eq!(half.body(&heads[0]).await, None, "the client sees that it is not whole");
    assert_eq!(old.body(&heads[1]).await, None, "policies see the path that the client asked for");
    assert_eq!(chat.rest().await, b"");
    go_on.notify_waiters();
    assert_eq!(free.body(&heads[2]).await.as_deref(), Some(&b"halfrest"[..]));
    let log = proxy.log(5).await;
    let told =
        log.iter().filter(|line| line.contains("rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]"));
    assert_eq!(told.count(), 4, "{log:?}");
}
