//! Requests that an external authorizer decides about: what it is shown, what the client and the upstream get, and what happens where it
//! says nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::rig::*;
use crate::config::listener::{Direction, HttpManager};
use crate::config::route::{Text, ValueMatch};
use crate::ext_authz::test_support::{
    Check, DeniedHttpResponse, HttpResponse, HttpStatus, OkHttpResponse, QueryParameter, option,
};
use crate::ext_authz::{Authorizer, BodyRule, Form, GrpcForm, HttpForm, Patterns};
use crate::worker::Shared;

fn names(names: &[&str]) -> Patterns {
    let exact = |name: &&str| ValueMatch::Exact(Text { value: name.as_bytes().into(), ignore_case: false });
    Patterns::Some(names.iter().map(exact).collect())
}

fn authorizer(form: Form, address: SocketAddr) -> Authorizer {
    let grpc = matches!(form, Form::Grpc(_));
    Authorizer {
        cluster: cluster(&[address], |spec| {
            if grpc {
                http2(spec)
            }
        }),
        form,
        timeout: Some(DEADLINE),
        body: None,
        fails_open: false,
        tells_fail_open: false,
        status_on_error: 403,
        routes_anew: true,
        mark: None,
        answers: Arc::default(),
    }
}

fn over_http(address: SocketAddr) -> Authorizer {
    let form = HttpForm {
        host: "authorizer".into(),
        path_prefix: b"/check"[..].into(),
        shown: names(&["x-shown"]),
        added: [("x-added".into(), b"1"[..].into())].into(),
        to_upstream: names(&["x-user", "x-shown", "content-length"]),
        to_client_denied: Patterns::All,
        to_client_allowed: names(&["x-hello"]),
    };
    authorizer(Form::Http(form), address)
}

fn over_grpc(address: SocketAddr) -> Authorizer {
    let form = GrpcForm { authority: "authorizer".into(), shown: Patterns::All, body_as_bytes: false };
    authorizer(Form::Grpc(form), address)
}

/// A proxy with these authorizers, in front of an upstream.
async fn proxy(authorizers: Vec<Authorizer>, upstream: &Upstream) -> Proxy {
    let route = to(&cluster(&[upstream.address], |_| {}), |_| {});
    let change = |manager: &mut HttpManager| {
        manager.authorizers = authorizers.into();
        manager.proxy_100_continue = true;
    };
    Proxy::beside(Arc::new(Shared::default()), Direction::Inbound, table(host(vec![route])), change).await
}

/// An authorizer that answers `answer`, and what it was asked.
async fn says(answer: &'static str) -> (Upstream, Arc<Mutex<Vec<Reply>>>) {
    let asked: Arc<Mutex<Vec<Reply>>> = Arc::default();
    let kept = asked.clone();
    let upstream = upstream(move |_, mut client| {
        let kept = kept.clone();
        async move {
            while let Some(request) = client.request().await {
                kept.lock().push(request);
                client.send(answer).await;
            }
        }
    });
    (upstream.await, asked)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn counts(answers: &crate::ext_authz::Answers) -> [u64; 4] {
    answers.counts().map(|(_, count)| count)
}

#[tokio::test]
async fn an_authorizer_sees_the_request_and_changes_it() {
    let (guard, asked) = says(
        "HTTP/1.1 200 OK\r\nx-user: joe\r\nx-other: no\r\nx-hello: you\r\nx-hello: and you\r\nx-envoy-auth-headers-to-remove: x-gone, authorization\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let mirror = mirror().await;
    let proxy = proxy(vec![over_http(guard.address)], &mirror).await;
    let reply = proxy
        .ask("POST /a?b=c HTTP/1.1\r\nHost: h\r\nAuthorization: t\r\nX-Shown: 1\r\nx-shown: 2\r\nX-USER: forged\r\nx-user: too\r\nx-gone: 1\r\nx-hidden: 1\r\nx-envoy-auth-failure-mode-allowed: true\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert_eq!((reply.status(), reply.get("x-up")), (200, Some("1")));
    let greetings: Vec<&str> = reply.head.lines().filter_map(|line| line.strip_prefix("x-hello: ")).collect();
    assert_eq!(greetings, ["you", "and you"]);
    let upstream = reply.body.to_ascii_lowercase();
    for there in [
        "post /a?b=c http",
        "x-shown: 1\n",
        "x-shown: 2\n",
        "x-user: joe\n",
        "x-hidden: 1",
        "content-length: 3",
    ] {
        assert!(upstream.contains(there), "{there} in\n{upstream}");
    }
    for gone in
        ["forged", "too", "x-gone", "authorization", "x-other", "failure-mode-allowed", "content-length: 2"]
    {
        assert!(!upstream.contains(gone), "no {gone} in\n{upstream}");
    }
    let asked = asked.lock()[0].clone();
    let head = asked.head.to_ascii_lowercase();
    for there in [
        "post /check/a?b=c http/1.1",
        "host: h",
        "authorization: t",
        "x-shown: 1,2",
        "x-added: 1",
        "content-length: 0",
    ] {
        assert!(head.contains(there), "{there} in\n{head}");
    }
    assert!(!head.contains("x-hidden") && !head.contains("partial") && asked.body.is_empty(), "{head}");
    // The answer lets in, but says nothing of the user: a client's word for it is none.
    let (silent, _) = says(OK).await;
    let proxy = self::proxy(vec![over_http(silent.address)], &mirror).await;
    let reply = proxy.ask("GET / HTTP/1.1\r\nHost: h\r\nX-User: forged\r\nX-Shown: mine\r\n\r\n").await;
    assert!(
        reply.status() == 200 && !reply.body.contains("forged") && reply.body.contains("mine"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_denial_is_the_authorizers_to_the_word() {
    for (answer, status, body, header) in [
        (
            "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: x\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 5\r\n\r\nlogin",
            401,
            "login",
            ("www-authenticate", "x"),
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
            302,
            "",
            ("location", "/login"),
        ),
        (
            "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\ncontent-type: a/b\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            201,
            "no",
            ("content-type", "a/b"),
        ),
    ] {
        let ((guard, _), mirror) = (says(answer).await, mirror().await);
        let authorizer = over_http(guard.address);
        let answers = authorizer.answers.clone();
        let proxy = proxy(vec![authorizer], &mirror).await;
        let reply = proxy.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!((reply.status(), &*reply.body, reply.get(header.0)), (status, body, Some(header.1)));
        assert_eq!(mirror.connections(), 0);
        let log = proxy.log(1).await;
        assert!(log[0].starts_with(&format!("{status} UAEX ext_authz_denied ")), "{log:?}");
        assert_eq!(counts(&answers), [0, 1, 0, 0]);
    }
}

/// An authorizer's failures: what of them a connection sees.
async fn failing(kind: &'static str) -> Upstream {
    upstream(move |_, mut client| async move {
        let _ = client.head().await;
        match kind {
            "error" => client.send("HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n").await,
            "dies" => client.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await,
            "garbage" => client.send("no HTTP\r\n\r\n").await,
            "endless" => {
                client.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                while tokio::io::AsyncWriteExt::write_all(&mut client.tcp, piece.as_bytes()).await.is_ok() {}
            }
            _ => std::future::pending().await,
        }
    })
    .await
}

#[tokio::test]
async fn without_an_answer_nobody_gets_in_unless_that_is_wanted() {
    for (kind, why) in [
        ("error", "status_5"),
        ("dies", "{"),
        ("garbage", "{"),
        ("endless", "{the_answer_is_too_large}"),
        ("silence", "{no_answer_in_time}"),
        ("nobody", "Connection_refused"),
    ] {
        for (fails_open, status_on_error) in [(false, 403), (false, 503), (true, 403)] {
            let (guard, mirror) = (failing(kind).await, mirror().await);
            let address = if kind == "nobody" { nobody().await } else { guard.address };
            let mut authorizer = over_http(address);
            (authorizer.fails_open, authorizer.tells_fail_open) = (fails_open, fails_open);
            authorizer.status_on_error = status_on_error;
            if kind == "silence" {
                authorizer.timeout = Some(Duration::from_millis(20));
            }
            let answers = authorizer.answers.clone();
            let proxy = proxy(vec![authorizer], &mirror).await;
            let reply =
                proxy.ask("GET / HTTP/1.1\r\nHost: h\r\nx-envoy-auth-failure-mode-allowed: x\r\n\r\n").await;
            if fails_open {
                assert_eq!(reply.status(), 200, "{kind}");
                assert!(reply.body.contains("x-envoy-auth-failure-mode-allowed: true"), "{kind}: {reply:?}");
            } else {
                assert_eq!((reply.status(), &*reply.body), (status_on_error, ""), "{kind}");
                let log = proxy.log(1).await;
                assert!(
                    log[0].starts_with(&format!("{status_on_error} UAEX ext_authz_error{{"))
                        && log[0].contains(why),
                    "{kind}: {log:?}"
                );
            }
            assert_eq!(mirror.connections(), usize::from(fails_open), "{kind}");
            assert_eq!(counts(&answers), [0, 0, 1, u64::from(fails_open)], "{kind}");
        }
    }
}

#[tokio::test]
async fn a_body_is_shown_and_arrives_whole() {
    let long = "abcdefghij".repeat(2000);
    for (most, partial, body, shown) in [
        (5, false, "abc", Some(("abc", "false"))),
        (5, false, "abcde", Some(("abcde", "false"))),
        (5, false, "abcdef", None),
        (5, true, "abcdef", Some(("abcde", "true"))),
        (5, true, "abcde", Some(("abcde", "false"))),
        (15_000, true, &*long, Some((&long[..15_000], "true"))),
        (30_000, false, &*long, Some((&*long, "false"))),
        (15_000, false, &*long, None),
    ] {
        for chunked in [false, true] {
            let ((guard, asked), mirror) = (says(OK).await, mirror().await);
            let mut authorizer = over_http(guard.address);
            authorizer.body = Some(BodyRule { most, partial });
            authorizer.fails_open = true;
            let proxy = proxy(vec![authorizer], &mirror).await;
            let (framing, wire) = match chunked {
                true => (
                    "Transfer-Encoding: chunked".to_owned(),
                    format!("1\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..1], body.len() - 1, &body[1..]),
                ),
                false => (format!("Content-Length: {}", body.len()), body.to_owned()),
            };
            let reply = proxy
                .ask(&format!(
                    "POST / HTTP/1.1\r\nHost: h\r\nx-envoy-auth-partial-body: no\r\n{framing}\r\n\r\n{wire}"
                ))
                .await;
            let Some((bytes, flag)) = shown else {
                assert_eq!((reply.status(), &*reply.body), (413, "Payload Too Large"), "{most} {chunked}");
                assert!(asked.lock().is_empty() && mirror.connections() == 0);
                continue;
            };
            assert_eq!(reply.status(), 200, "{most} {chunked}");
            assert!(reply.body.ends_with(&format!("\n\n{body}")) && !reply.body.contains("partial-body"));
            let asked = asked.lock()[0].clone();
            assert_eq!((&*asked.body, asked.get("x-envoy-auth-partial-body")), (bytes, Some(flag)));
            let length = bytes.len().to_string();
            let told = asked.head.to_ascii_lowercase();
            assert!(told.contains(&format!("content-length: {length}")), "{told}");
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_send() {
    let ((guard, asked), mirror) = (says(OK).await, mirror().await);
    let mut authorizer = over_http(guard.address);
    authorizer.body = Some(BodyRule { most: 10, partial: false });
    let proxy = proxy(vec![authorizer], &mirror).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    assert!(client.head().await.expect("an interim answer").starts_with("HTTP/1.1 100"));
    client.send("abc").await;
    let reply = client.reply().await;
    assert!(reply.status() == 200 && reply.body.ends_with("abc"), "{reply:?}");
    assert_eq!(asked.lock()[0].body, "abc");
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_question_with_it() {
    let (left, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let guard = upstream(move |_, mut client| {
        let left = left.clone();
        async move {
            let _ = client.head().await;
            let _ = left.send("asked");
            client.rest_quietly().await;
            let _ = left.send("gone");
        }
    })
    .await;
    let mirror = mirror().await;
    let proxy = proxy(vec![over_http(guard.address)], &mirror).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(hears.recv().await, Some("asked"));
    drop(client);
    let gone = tokio::time::timeout(DEADLINE, hears.recv()).await;
    assert_eq!(gone.expect("the question ends"), Some("gone"));
    assert_eq!(mirror.connections(), 0);
}

#[tokio::test]
async fn a_message_tells_the_whole_request_and_its_answer_changes_it() {
    let ok = OkHttpResponse {
        headers: vec![
            option("x-list", "c", Some(true)),
            option("x-user", "joe", None),
            option("x-absent", "no", Some(true)),
            option("transfer-encoding", "chunked", None),
            option(":path", "/other?k=old&gone=1&kept=1", None),
        ],
        headers_to_remove: vec!["x-gone".into(), "Host".into(), "content-length".into()],
        response_headers_to_add: vec![option("x-hello", "you", None)],
        query_parameters_to_set: vec![QueryParameter { key: "k".into(), value: "v".into() }],
        query_parameters_to_remove: vec!["gone".into()],
    };
    let (guard, check) = Check::start(0, Some(HttpResponse::OkResponse(ok))).await;
    let mirror = mirror().await;
    let mut authorizer = over_grpc(guard);
    authorizer.body = Some(BodyRule { most: 4, partial: true });
    let proxy = proxy(vec![authorizer], &mirror).await;
    let reply = proxy
        .ask("POST /a?b HTTP/1.1\r\nHost: h\r\nX-List: a\r\nx-list: b\r\nx-user: me\r\nx-gone: 1\r\nContent-Length: 6\r\n\r\nabc\u{e9}d")
        .await;
    assert_eq!((reply.status(), reply.get("x-hello")), (200, Some("you")));
    let upstream = reply.body.to_ascii_lowercase();
    for there in
        ["post /other?kept=1&k=v http", "x-list: a,b,c\n", "x-user: joe\n", "content-length: 6\n", "host: h"]
    {
        assert!(upstream.contains(there), "{there} in\n{upstream}");
    }
    for gone in ["x-gone", "x-absent", "transfer-encoding", "x-user: me"] {
        assert!(!upstream.contains(gone), "no {gone} in\n{upstream}");
    }
    let attributes = check.asked.lock()[0].attributes.clone().expect("attributes");
    assert!(attributes.source.is_some() && attributes.destination.is_some());
    let http = attributes.request.and_then(|request| request.http).expect("a request");
    assert_eq!((&*http.method, &*http.path, &*http.host, &*http.scheme), ("POST", "/a?b", "h", "http"));
    assert_eq!((&*http.protocol, http.size, &*http.body), ("HTTP/1.1", 6, "abc"));
    let headers: BTreeMap<&str, &str> = http.headers.iter().map(|(n, v)| (&**n, &**v)).collect();
    for (name, value) in [
        (":path", "/a?b"),
        (":method", "POST"),
        (":authority", "h"),
        ("x-list", "a,b"),
        ("x-envoy-auth-partial-body", "true"),
    ] {
        assert_eq!(headers.get(name), Some(&value), "{headers:?}");
    }
}

#[tokio::test]
async fn a_message_denies_with_status_headers_and_body() {
    let denial = |code: i32, body: &str| {
        HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers: vec![option("set-cookie", "a", None), option("set-cookie", "b", None)],
            body: body.into(),
        })
    };
    for (code, response, status, body) in [
        (7, Some(denial(401, "who?")), 401, "who?"),
        (7, Some(denial(0, "no")), 403, "no"),
        (7, Some(denial(7000, "no")), 403, "no"),
        (16, None, 403, ""),
        // It contradicts itself.
        (0, Some(denial(200, "")), 200, ""),
    ] {
        let (guard, _) = Check::start(code, response).await;
        let mirror = mirror().await;
        let proxy = proxy(vec![over_grpc(guard)], &mirror).await;
        let reply = proxy.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!((reply.status(), &*reply.body), (status, body));
        assert_eq!(mirror.connections(), 0);
        assert!(proxy.log(1).await[0].contains(" UAEX ext_authz_denied "));
    }
    let (guard, _) = Check::start(-1, None).await;
    let mirror = mirror().await;
    let proxy = proxy(vec![over_grpc(guard)], &mirror).await;
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.status(), 403);
    assert!(proxy.log(1).await[0].contains(" UAEX ext_authz_error{"));
}

/// A client could choose whether it is looked at.
#[tokio::test]
async fn what_can_not_be_told_is_denied_even_where_errors_let_in() {
    let (guard, check) = Check::start(0, None).await;
    let mirror = mirror().await;
    let mut authorizer = over_grpc(guard);
    authorizer.fails_open = true;
    authorizer.body = Some(BodyRule { most: 10, partial: false });
    let proxy = proxy(vec![authorizer], &mirror).await;
    for request in [
        &b"GET / HTTP/1.1\r\nHost: h\r\nx-a: \xff\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na\xff",
    ] {
        let mut client = proxy.client().await;
        client.send(request).await;
        assert_eq!(client.reply().await.status(), 403);
    }
    assert!(check.asked.lock().is_empty() && mirror.connections() == 0);
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nHost: h\r\nx-a: \u{e9}\r\n\r\n").await.status(), 200);
}
