//! Requests that a policy denies: what the client gets, what the log says, and that nobody else hears of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::rig::*;
use crate::authz::counters::Tally;
use crate::authz::{Action, Condition, Denial, Filter, Rule, Rules};
use crate::config::listener::{Direction, HttpManager, Normalize};
use crate::config::route::{Text, ValueMatch};
use crate::worker::Shared;

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
