//! Hosts and routes: a table per rule, and a naive router as reference.

use proptest::prelude::*;

use super::*;
use crate::config::regex::full_match;
use crate::config::route::{Action, DirectResponse, HeaderOps, RequireTls};

fn text(value: &str) -> Text {
    Text { value: value.as_bytes().into(), ignore_case: false }
}

fn any_case(value: &str) -> Text {
    Text { value: value.to_ascii_lowercase().into_bytes().into(), ignore_case: true }
}

fn matching(path: PathMatch) -> RouteMatch {
    RouteMatch { path, headers: vec![], query: vec![], runtime_fraction: None, grpc: false, claims: vec![] }
}

fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
    let action = Action::Direct(DirectResponse { status: 200, body: Default::default() });
    Arc::new(Route { name: name.into(), matches, action, headers: HeaderOps::default(), decorator: None })
}

fn virtual_host(name: &str, routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
    Arc::new(VirtualHost {
        name: name.into(),
        routes,
        headers: HeaderOps::default(),
        require_tls: RequireTls::None,
        attempt_count_in_request: false,
        attempt_count_in_response: false,
    })
}

fn index(domains: &[&str]) -> HostIndex {
    let mut index = HostIndex::default();
    for domain in domains {
        assert!(index.insert(domain, &virtual_host(domain, vec![])), "{domain}");
    }
    index
}

fn get(path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    head.set_path(path.as_bytes());
    head.set_authority(b"A.example:80");
    for (name, value) in headers {
        head.fields.append(*name, value.as_bytes());
    }
    head
}

fn takes(matches: RouteMatch, head: &RequestHead) -> bool {
    find_route(&virtual_host("", vec![route("", matches)]), head, &[], 0).is_some()
}

#[test]
fn hosts_exact_then_suffix_then_prefix_then_any() {
    let index = index(&["a.com", "*.com", "*.a.com", "*-b.a.com", "a.*", "a.b.*", "*"]);
    for (host, expected) in [
        ("a.com", "a.com"),
        ("A.COM", "a.com"),
        ("x.com", "*.com"),
        ("x.a.com", "*.a.com"),
        ("x-b.a.com", "*-b.a.com"),
        ("-b.a.com", "*.a.com"),
        (".com", "*"),
        ("a.org", "a.*"),
        ("a.b.org", "a.b.*"),
        ("a.b.com", "*.com"),
        ("a.", "*"),
        ("a.com:80", "a.*"),
        ("", "*"),
        ("é", "*"),
    ] {
        assert_eq!(&*find_host(&index, host.as_bytes(), false).unwrap().name, expected, "{host}");
    }
    assert_eq!(&*find_host(&index, b"A.com:8080", true).unwrap().name, "a.com");
    assert_eq!(&*find_host(&index, b"x.com:", true).unwrap().name, "*.com");
}

#[test]
fn hosts_without_catch_all_may_find_nothing() {
    let index = index(&["a.com", "[::1]"]);
    assert!(find_host(&index, b"b.com", true).is_none());
    assert!(find_host(&index, b"a.com:80", false).is_none());
    assert_eq!(&*find_host(&index, b"[::1]:80", true).unwrap().name, "[::1]");
    assert!(find_host(&HostIndex::default(), b"b.com", true).is_none());
}

#[test]
fn a_domain_can_be_claimed_once() {
    let mut index = index(&["a.com", "*.com", "a.*", "*"]);
    for domain in ["A.com", "*.COM", "a.*", "*"] {
        assert!(!index.insert(domain, &virtual_host("second", vec![])), "{domain}");
    }
}

#[test]
fn ports_are_cut_only_where_they_are_ports() {
    for (authority, host) in [
        ("a", "a"),
        ("a:80", "a"),
        ("a:", "a"),
        ("a:x", "a:x"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("::1", "::1"),
        ("", ""),
    ] {
        assert_eq!(without_port(authority.as_bytes()), host.as_bytes(), "{authority}");
    }
}

#[test]
fn paths() {
    let cases: Vec<(PathMatch, &[&str], &[&str])> = vec![
        (
            PathMatch::Prefix(text("/foo")),
            &["/foo", "/foobar", "/foo/bar", "/foo?x"],
            &["/fo", "/Foo", "/", "/x/foo"],
        ),
        (PathMatch::Prefix(text("/")), &["/", "/x", "/?q"], &["*"]),
        (PathMatch::Prefix(text("")), &["/", "*"], &[]),
        (PathMatch::Prefix(any_case("/Foo")), &["/foo", "/FOObar"], &["/fo"]),
        (PathMatch::Exact(text("/foo")), &["/foo", "/foo?x=/foo"], &["/foo/", "/foo/bar", "/FOO"]),
        (PathMatch::Exact(any_case("/foo")), &["/FOO"], &["/foo/"]),
        (
            PathMatch::SegmentPrefix(text("/foo")),
            &["/foo", "/foo/", "/foo/bar", "/foo?x"],
            &["/foobar", "/fo"],
        ),
        (PathMatch::SegmentPrefix(any_case("/foo")), &["/FOO/bar"], &["/FOObar"]),
        (
            PathMatch::Regex(full_match("/v[0-9]/.*").unwrap()),
            &["/v1/", "/v1/x?y"],
            &["/v1", "/x/v1/", "/v11/"],
        ),
        (PathMatch::Connect, &[], &["/", "/foo"]),
    ];
    for (path, yes, no) in cases {
        let shown = format!("{path:?}");
        let host = virtual_host("", vec![route("", matching(path))]);
        for given in yes {
            assert!(find_route(&host, &get(given, &[]), &[], 0).is_some(), "{shown} takes {given}");
        }
        for given in no {
            assert!(find_route(&host, &get(given, &[]), &[], 0).is_none(), "{shown} refuses {given}");
        }
    }
}

#[test]
fn connect_is_matched_by_its_own_condition_only() {
    let mut connect = get("", &[]);
    connect.set_method(b"CONNECT");
    assert!(takes(matching(PathMatch::Connect), &connect));
    assert!(!takes(matching(PathMatch::Prefix(text(""))), &connect));
    assert!(!takes(matching(PathMatch::Regex(full_match(".*").unwrap())), &connect));
}

#[test]
fn headers() {
    let header = |subject: &str, value, invert, missing_as_empty| {
        let header = HeaderMatch { subject: subject.into(), value, invert, missing_as_empty };
        RouteMatch { headers: vec![header], ..matching(PathMatch::Prefix(text("/"))) }
    };
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let (one, two, none, empty): (Headers<'_>, Headers<'_>, Headers<'_>, Headers<'_>) =
        (&[("X-A", "one")], &[("x-a", "one"), ("X-a", "two")], &[], &[("x-a", "")]);
    let cases: Vec<(RouteMatch, Headers<'_>, bool)> = vec![
        (header("x-a", ValueMatch::Exact(text("one")), false, false), one, true),
        (header("X-A", ValueMatch::Exact(text("One")), false, false), one, false),
        (header("x-a", ValueMatch::Exact(any_case("ONE")), false, false), one, true),
        (header("x-a", ValueMatch::Exact(text("one,two")), false, false), two, false),
        (header("x-a", ValueMatch::Exact(text("two")), false, false), two, true),
        (header("x-a", ValueMatch::Exact(text("")), false, false), empty, true),
        (header("x-a", ValueMatch::Exact(text("")), false, false), none, false),
        (header("x-a", ValueMatch::Exact(text("")), false, true), none, true),
        (header("x-a", ValueMatch::Exact(text("one")), true, false), one, false),
        (header("x-a", ValueMatch::Exact(text("two")), true, false), two, false),
        (header("x-a", ValueMatch::Exact(text("three")), true, false), two, true),
        (header("x-a", ValueMatch::Exact(text("one")), true, false), none, false),
        (header("x-a", ValueMatch::Exact(text("one")), true, true), none, true),
        (header("x-a", ValueMatch::Present(true), false, false), empty, true),
        (header("x-a", ValueMatch::Present(true), false, false), none, false),
        (header("x-a", ValueMatch::Present(true), true, false), none, true),
        (header("x-a", ValueMatch::Present(false), false, false), none, true),
        (header("x-a", ValueMatch::Present(false), true, false), none, false),
        (header("x-a", ValueMatch::Prefix(text("on")), false, false), two, true),
        (header("x-a", ValueMatch::Suffix(text("two")), false, false), two, true),
        (header("x-a", ValueMatch::Suffix(text("longer than it")), false, false), one, false),
        (header("x-a", ValueMatch::Contains(text("e,t")), false, false), two, false),
        (header("x-a", ValueMatch::Contains(any_case("WO")), false, false), two, true),
        (header("x-a", ValueMatch::Contains(text("")), false, false), one, true),
        (header("x-a", ValueMatch::Regex(full_match("o.e").unwrap()), false, false), one, true),
        (header("x-a", ValueMatch::Regex(full_match("on").unwrap()), false, false), one, false),
        (header("x-n", ValueMatch::Range(1, 5), false, false), &[("x-n", "4")], true),
        (header("x-n", ValueMatch::Range(1, 5), false, false), &[("x-n", "5")], false),
        (header("x-n", ValueMatch::Range(1, 5), false, false), &[("x-n", "9"), ("x-n", "3")], true),
        (header("x-n", ValueMatch::Range(-5, 0), false, false), &[("x-n", "-5")], true),
        (header("x-n", ValueMatch::Range(1, 5), false, false), &[("x-n", "4x")], false),
        (header("x-n", ValueMatch::Range(1, 5), true, false), &[("x-n", "4x")], true),
        (header(":method", ValueMatch::Exact(text("GET")), false, false), none, true),
        (header(":method", ValueMatch::Exact(text("get")), false, false), none, false),
        (header(":authority", ValueMatch::Exact(text("A.example:80")), false, false), none, true),
        (header("host", ValueMatch::Suffix(text(":80")), false, false), none, true),
        (header(":scheme", ValueMatch::Exact(text("http")), false, false), none, true),
        (header(":path", ValueMatch::Exact(text("/p?q=1")), false, false), none, true),
        (header(":status", ValueMatch::Present(true), false, false), none, false),
    ];
    for (number, (matches, headers, expected)) in cases.into_iter().enumerate() {
        let shown = format!("case {number}: {:?} on {headers:?}", matches.headers);
        assert_eq!(takes(matches, &get("/p?q=1", headers)), expected, "{shown}");
    }
}

#[test]
fn query_parameters() {
    let query = |name: &str, value| {
        let query = QueryMatch { name: name.as_bytes().into(), value };
        RouteMatch { query: vec![query], ..matching(PathMatch::Prefix(text("/"))) }
    };
    for (matches, path, expected) in [
        (query("a", ValueMatch::Exact(text("1"))), "/?a=1", true),
        (query("a", ValueMatch::Exact(text("1"))), "/?b=2&a=1", true),
        (query("a", ValueMatch::Exact(text("2"))), "/?a=1&a=2", false),
        (query("a", ValueMatch::Exact(text("1%202"))), "/?a=1%202", true),
        (query("a", ValueMatch::Exact(text("1 2"))), "/?a=1%202", false),
        (query("a b", ValueMatch::Exact(text("1"))), "/?a%20b=1", false),
        (query("a", ValueMatch::Exact(text("1+2"))), "/?a=1+2", true),
        (query("a", ValueMatch::Exact(text("1=2"))), "/?a=1=2", true),
        (query("a", ValueMatch::Exact(text(""))), "/?a", true),
        (query("a", ValueMatch::Exact(text(""))), "/", false),
        (query("a", ValueMatch::Present(true)), "/?a", true),
        (query("a", ValueMatch::Present(true)), "/?ab", false),
        (query("a", ValueMatch::Present(false)), "/?ab", true),
        (query("", ValueMatch::Present(true)), "/?", false),
        (query("A", ValueMatch::Present(true)), "/?a", false),
        (query("a", ValueMatch::Regex(full_match("[0-9]+").unwrap())), "/?a=12", true),
    ] {
        let shown = format!("{:?} on {path}", matches.query);
        assert_eq!(takes(matches, &get(path, &[])), expected, "{shown}");
    }
}

#[test]
fn grpc_and_runtime_fraction() {
    let grpc = RouteMatch { grpc: true, ..matching(PathMatch::Prefix(text("/"))) };
    assert!(takes(grpc, &get("/", &[("content-type", "application/grpc+proto")])));
    let grpc = RouteMatch { grpc: true, ..matching(PathMatch::Prefix(text("/"))) };
    assert!(!takes(grpc, &get("/", &[("content-type", "application/grpc-web")])));

    let half = RouteMatch { runtime_fraction: Some(500_000), ..matching(PathMatch::Prefix(text("/"))) };
    let host =
        virtual_host("", vec![route("half", half), route("rest", matching(PathMatch::Prefix(text("/"))))]);
    let mut random = 1u64;
    let taken = (0..10_000).filter(|_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        &*find_route(&host, &get("/", &[]), &[], random).unwrap().name == "half"
    });
    let taken = taken.count();
    assert!((4_800..5_200).contains(&taken), "{taken}");
    let never = RouteMatch { runtime_fraction: Some(0), ..matching(PathMatch::Prefix(text("/"))) };
    assert!(!takes(never, &get("/", &[])));
}

#[test]
fn the_first_route_wins() {
    let host = virtual_host(
        "",
        vec![
            route("long", matching(PathMatch::Prefix(text("/a/b")))),
            route("short", matching(PathMatch::Prefix(text("/a")))),
            route("longer", matching(PathMatch::Prefix(text("/a/b/c")))),
        ],
    );
    assert_eq!(&*find_route(&host, &get("/a/b/c", &[]), &[], 0).unwrap().name, "long");
    assert_eq!(&*find_route(&host, &get("/a/c", &[]), &[], 0).unwrap().name, "short");
    assert!(find_route(&host, &get("/b", &[]), &[], 0).is_none());
}

/// The documented rule of virtual hosts, as slowly as it reads.
fn naive_host<'d>(domains: &'d [String], host: &str) -> Option<&'d str> {
    let host = host.to_ascii_lowercase();
    let fits = |domain: &&String| {
        if let Some(suffix) = domain.strip_prefix('*') {
            host.len() > suffix.len() && host.ends_with(suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            host.len() > prefix.len() && host.starts_with(prefix)
        } else {
            **domain == host
        }
    };
    let rank = |domain: &str| match (domain == "*", domain.starts_with('*'), domain.ends_with('*')) {
        (true, ..) => (0, 0),
        (_, true, _) => (2, domain.len()),
        (_, _, true) => (1, domain.len()),
        _ => (3, 0),
    };
    domains
        .iter()
        .filter(|domain| if *domain == "*" { true } else { fits(domain) })
        .map(String::as_str)
        .max_by_key(|d| rank(d))
}

proptest! {
    /// The index finds what the documented rule finds.
    #[test]
    fn hosts_agree_with_the_naive_rule(
        domains in proptest::collection::btree_set(r"[ab.]{1,4}|\*[ab.]{1,3}|[ab.]{1,3}\*|\*", 0..12),
        hosts in proptest::collection::vec("[abAB.]{0,6}", 1..20),
    ) {
        let domains: Vec<String> = domains.into_iter().collect();
        let mut index = HostIndex::default();
        for domain in &domains {
            prop_assert!(index.insert(domain, &virtual_host(domain, vec![])));
        }
        for host in &hosts {
            let found = find_host(&index, host.as_bytes(), false).map(|found| &*found.name);
            prop_assert_eq!(found, naive_host(&domains, host), "{} in {:?}", host, &domains);
        }
    }

    /// Of ordered prefixes and exact paths, the first that fits is found.
    #[test]
    fn routes_agree_with_the_naive_rule(
        rules in proptest::collection::vec((0..3u8, "/[ab/]{0,4}"), 0..10),
        path in "/[ab/]{0,6}",
        query in proptest::option::of("[ab/?]{0,4}"),
    ) {
        let routes = rules.iter().enumerate().map(|(number, (kind, value))| {
            let path = match kind {
                0 => PathMatch::Prefix(text(value)),
                1 => PathMatch::Exact(text(value)),
                _ => PathMatch::SegmentPrefix(text(value.trim_end_matches('/'))),
            };
            route(&number.to_string(), matching(path))
        });
        let host = virtual_host("", routes.collect());
        let expected = rules.iter().position(|(kind, value)| match kind {
            0 => path.starts_with(value.as_str()),
            1 => path == *value,
            _ => {
                let value = value.trim_end_matches('/');
                path == value || path.strip_prefix(value).is_some_and(|rest| rest.starts_with('/'))
            }
        });
        let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
        let found = find_route(&host, &get(&target, &[]), &[], 0).map(|route| route.name.parse::<usize>().unwrap());
        prop_assert_eq!(found, expected);
    }
}
