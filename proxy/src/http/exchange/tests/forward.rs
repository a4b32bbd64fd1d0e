//! What a request and its response look like at the other end.

use super::rig::*;
use crate::config::cluster::ClusterHandle;
use crate::config::route::{
    Action, AppendAction, DirectResponse, HeaderAdd, PathMatch, Redirect, RedirectPath, Route,
};
use crate::http::template::Template;
use crate::http::test_support::path_match;

#[tokio::test]
async fn a_request_is_forwarded_and_its_response_comes_back() {
    let mirror = mirror().await;
    let proxy = Proxy::start(vec![to(&cluster(&[mirror.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client
            .send("POST /path?q HTTP/1.1\r\nHost: A.example\r\nContent-Length: 5\r\nX-Mine: 1\r\n\r\nhello")
            .await;
        let reply = client.reply().await;
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.get("server"), Some("envoy"));
        assert_eq!(reply.get("x-up"), Some("1"));
        assert!(
            reply.get("date").is_some() && reply.get("x-envoy-upstream-service-time").is_some(),
            "{reply:?}"
        );
        let lines: Vec<&str> = reply.body.lines().collect();
        assert_eq!(lines[0], "POST /path?q HTTP/1.1");
        for wanted in ["host: A.example", "x-mine: 1", "content-length: 5", "x-forwarded-proto: http"] {
            assert!(lines.contains(&wanted), "{wanted} in {lines:?}");
        }
        assert!(lines.contains(&"x-envoy-attempt-count: 1"), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("x-request-id: ")), "{lines:?}");
        assert_eq!(lines.last(), Some(&"hello"));
    }
    assert_eq!(mirror.connections(), 1, "kept alive");
    let expected = format!("200 - via_upstream 5 {} 1 all backend", 0);
    for line in proxy.log(3).await {
        let words: Vec<&str> = line.split(' ').collect();
        let wanted: Vec<&str> = expected.split(' ').collect();
        assert_eq!((&words[..4], &words[5..]), (&wanted[..4], &wanted[5..]), "{line}");
    }
}

#[tokio::test]
async fn bodies_without_a_length_are_streamed_both_ways() {
    let upstream = upstream(|_, mut client| async move {
        while let Some(request) = client.request().await {
            assert!(request.head.contains("transfer-encoding: chunked"), "{}", request.head);
            client.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            client.send(format!("{:x}\r\n{}\r\n", request.body.len(), request.body)).await;
            client.send("0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.send("2\r\nde\r\n0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status(), &*reply.body), (200, "abcde"));
    assert_eq!(reply.get("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn routes_that_answer_themselves() {
    let fixed = DirectResponse { status: 418, body: "teapot".into() };
    let redirect = Redirect {
        status: 302,
        scheme: None,
        host: Some("b.example".into()),
        port: None,
        path: RedirectPath::Keep,
        strip_query: false,
    };
    let mut direct = route("direct", "/direct", Action::Direct(fixed));
    direct.headers.response_add = Box::new([HeaderAdd {
        name: "x-route".into(),
        value: Template::parse("%ROUTE_NAME% %RESPONSE_CODE%").unwrap(),
        action: AppendAction::OverwriteIfExistsOrAdd,
        keep_empty: false,
    }]);
    let routes = vec![
        direct,
        route("redirect", "/redirect", Action::Redirect(Box::new(redirect))),
        route("nothing", "/nothing", Action::NonForwarding),
        to(&ClusterHandle::empty("missing"), |_| {}),
    ];
    let proxy = Proxy::start(routes).await;
    let reply = proxy.ask("GET /direct HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), &*reply.body), (418, "teapot"));
    assert_eq!(reply.get("content-type"), Some("text/plain"));
    assert_eq!(reply.get("x-route"), Some("direct 418"));
    let reply = proxy.ask("GET /redirect?q HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), reply.get("location")), (302, Some("http://b.example/redirect?q")));
    let reply = proxy.ask("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), &*reply.body), (404, ""));
    let reply = proxy.ask("GET /else HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), &*reply.body), (503, ""));
    let grpc =
        "POST /else HTTP/1.1\r\nHost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let reply = proxy.ask(grpc).await;
    assert_eq!((reply.status(), reply.get("grpc-status")), (200, Some("14")));
    let starts = [
        "418 - direct_response 0 6 0 direct -",
        "302 - direct_response 0 0 0 redirect -",
        "404 NR route_not_found{route_nothing_forwards_nothing} 0 0 0 nothing -",
        "503 NC cluster_not_found{cluster_missing_doesn't_exist} 0 0 0 all missing",
        "200 NC cluster_not_found{cluster_missing_doesn't_exist} 0 0 0 all missing",
    ];
    assert_eq!(proxy.log(5).await, starts);
}

#[tokio::test]
async fn a_host_that_nobody_serves_is_not_found() {
    let mut table = table(host(vec![]));
    table.hosts = crate::config::route::VirtualHosts::Known(crate::config::route::HostIndex::default());
    let proxy = Proxy::with(table, |_| {}).await;
    let reply = proxy.ask("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!((reply.status(), &*reply.body), (404, ""));
    assert_eq!(
        proxy.log(1).await,
        ["404 NR route_not_found{no_virtual_host_for_a.example_in_route_table_table} 0 0 0 - -"]
    );
}

#[tokio::test]
async fn head_responses_keep_their_length_and_have_no_body() {
    let upstream = upstream(|_, mut client| async move {
        while client.head().await.is_some() {
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.head().await.unwrap();
        assert!(head.contains("content-length: 1234"), "{head}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_websocket_is_tunnelled_after_the_upstreams_101() {
    let upstream = upstream(|_, mut client| async move {
        let head = client.head().await.unwrap().to_ascii_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        client
            .send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhi")
            .await;
        assert_eq!(client.exactly(4).await, b"ping");
        client.send("pong").await;
        assert_eq!(client.rest().await, b"");
    })
    .await;
    let routes = || table(host(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]));
    let proxy = Proxy::with(routes(), |manager| manager.upgrades = vec!["websocket".into()]).await;
    let request = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = proxy.client().await;
    client.send(request).await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(client.exactly(2).await, b"hi");
    client.send("ping").await;
    assert_eq!(client.exactly(4).await, b"pong");
    drop(client);
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("101 - via_upstream 4 6 1 all backend"), "{line}");

    let refusing = Proxy::with(routes(), |_| {}).await;
    assert_eq!(refusing.ask(request).await.status(), 403);
    let line = refusing.log(1).await.remove(0);
    assert!(line.starts_with("403 - upgrade_failed{upgrade_to_websocket_is_not_enabled}"), "{line}");
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_declines_is_an_ordinary_response() {
    let mirror = mirror().await;
    let routes = table(host(vec![to(&cluster(&[mirror.address], |_| {}), |_| {})]));
    let proxy = Proxy::with(routes, |manager| manager.upgrades = vec!["websocket".into()]).await;
    let reply =
        proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(reply.status(), 200);
}

#[tokio::test]
async fn connect_goes_back_to_the_listener_on_explicit_proxies_only() {
    let connect =
        || Route { matches: path_match(PathMatch::Connect), ..to(&ClusterHandle::empty("c"), |_| {}) };
    let routes = || table(host(vec![connect()]));
    let mut proxy = Proxy::with(routes(), |manager| manager.explicit_proxy = true).await;
    let mut client = proxy.client().await;
    client.send("CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\nfirst").await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 200 "));
    let ended = tokio::time::timeout(DEADLINE, proxy.ended.recv()).await.unwrap().unwrap();
    let crate::http::server::Ended::Tunnel { buffered, authority, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(&*authority, b"db.example:5432");
    assert!(b"first".starts_with(&buffered));

    let refusing = Proxy::with(routes(), |_| {}).await;
    let reply = refusing.ask("CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n").await;
    assert_eq!(reply.status(), 403);
    let refusing = Proxy::start(vec![]).await;
    let reply = refusing.ask("CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n").await;
    assert_eq!(reply.status(), 404, "no route takes it");
}

#[tokio::test]
async fn one_hundred_continue_comes_from_the_upstream_where_it_is_proxied() {
    let upstream = upstream(|_, mut client| async move {
        let head = client.head().await.unwrap();
        assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
        client.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = client.body(&head).await.unwrap();
        client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await;
        client.send(body).await;
    })
    .await;
    let routes = table(host(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]));
    let proxy = Proxy::with(routes, |manager| manager.proxy_100_continue = true).await;
    let mut client = proxy.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap(), "HTTP/1.1 100 Continue");
    client.send("abc").await;
    let reply = client.reply().await;
    assert_eq!((reply.status(), &*reply.body), (200, "abc"));
}
