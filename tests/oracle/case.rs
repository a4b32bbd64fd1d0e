//! The table of cases: each a name and the raw requests that are sent one after another on one connection.

/// One case.
pub struct Case {
    /// Unique name.
    pub name: &'static str,
    /// Which listener of the bootstrap: `http`, `tcp`, `tcp-dead`.
    pub listener: &'static str,
    /// Raw requests.
    pub requests: Vec<Vec<u8>>,
    /// End our side after each request.
    pub half_close: bool,
}

/// A case of one request, given as it is on the wire.
fn raw(name: &'static str, request: impl Into<Vec<u8>>) -> Case {
    Case { name, listener: "http", requests: vec![request.into()], half_close: false }
}

/// A case of one GET: host, path, further header lines.
fn get(name: &'static str, host: &str, path: &str, headers: &str) -> Case {
    raw(name, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"))
}

/// A case of one request with another method and a body.
fn send(name: &'static str, method: &str, path: &str, headers: &str, body: &str) -> Case {
    raw(
        name,
        format!(
            "{method} {path} HTTP/1.1\r\nHost: any.test\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        ),
    )
}

/// Several requests on one connection.
fn several(name: &'static str, requests: &[&str]) -> Case {
    Case {
        name,
        listener: "http",
        requests: requests.iter().map(|r| r.as_bytes().to_vec()).collect(),
        half_close: false,
    }
}

/// Bytes on a TCP listener.
fn tcp(name: &'static str, listener: &'static str, bytes: &str) -> Case {
    Case { name, listener, requests: vec![bytes.as_bytes().to_vec()], half_close: false }
}
/// Hosts and routes.
pub fn routing() -> Vec<Case> {
    vec![
        get("host exact", "exact.test", "/", ""),
        get("host exact upper case", "EXACT.test", "/", ""),
        get("host with listed port", "exact.test:8080", "/", ""),
        get("host with other port", "exact.test:9", "/", ""),
        get("host suffix", "a.suffix.test", "/", ""),
        get("host suffix two labels", "a.b.suffix.test", "/", ""),
        get("host suffix longest", "a.deep.suffix.test", "/", ""),
        get("host suffix without label", "suffix.test", "/nothing", ""),
        get("host prefix", "prefix.example", "/", ""),
        get("host prefix alone", "prefix.", "/", ""),
        get("host without routes", "empty.test", "/", ""),
        get("host unknown goes to catch-all", "other.test", "/exact", ""),
        get("path exact", "any.test", "/exact", ""),
        get("path exact with query", "any.test", "/exact?a=b", ""),
        get("path exact with trailing slash", "any.test", "/exact/", ""),
        get("path exact other case", "any.test", "/EXACT", ""),
        get("path ignoring case", "any.test", "/cAsE", ""),
        get("segment itself", "any.test", "/segment", ""),
        get("segment below", "any.test", "/segment/a", ""),
        get("segment with query", "any.test", "/segment?x", ""),
        get("segment not string prefix", "any.test", "/segments", ""),
        get("segment with trailing slash", "any.test", "/segment/", ""),
        get("regex whole", "any.test", "/re/abc/12", ""),
        get("regex with query", "any.test", "/re/abc/12?q=1", ""),
        get("regex not partial", "any.test", "/re/abc/12x", ""),
        get("regex not matching", "any.test", "/re/ABC/12", ""),
        get("header exact", "any.test", "/headers", "x-exact: yes\r\n"),
        get("header exact other", "any.test", "/headers", "x-exact: no\r\n"),
        get("header exact twice joined", "any.test", "/headers", "x-exact: yes\r\nx-exact: yes\r\n"),
        get("header name case", "any.test", "/headers", "X-EXACT: yes\r\n"),
        get("header value case", "any.test", "/headers", "x-exact: YES\r\n"),
        get("header exact with spaces", "any.test", "/headers", "x-exact:   yes  \r\n"),
        get("header prefix", "any.test", "/headers", "x-prefix: preface\r\n"),
        get("header suffix", "any.test", "/headers", "x-suffix: suffix\r\n"),
        get("header contains", "any.test", "/headers", "x-contains: amidst\r\n"),
        get("header regex", "any.test", "/headers", "x-regex: aaab\r\n"),
        get("header regex whole only", "any.test", "/headers", "x-regex: aaabc\r\n"),
        get("header range low", "any.test", "/headers", "x-range: 10\r\n"),
        get("header range high is out", "any.test", "/headers", "x-range: 20\r\n"),
        get("header range not a number", "any.test", "/headers", "x-range: ten\r\n"),
        get("header present", "any.test", "/headers", "x-present: \r\n"),
        get("header absent", "any.test", "/headers", "x-ask: absent\r\n"),
        get("header absent but there", "any.test", "/headers", "x-ask: absent\r\nx-absent: 1\r\n"),
        send("method pseudo header", "PUT", "/headers", "", ""),
        get("query exact", "any.test", "/query?a=1", ""),
        get("query exact second parameter", "any.test", "/query?z=0&a=1", ""),
        get("query first occurrence counts", "any.test", "/query?a=2&a=1", ""),
        get("query present", "any.test", "/query?b=anything", ""),
        get("query present without value", "any.test", "/query?b", ""),
        get("query encoded value", "any.test", "/query?a=%31", ""),
        get("query none", "any.test", "/query", ""),
        get("query name prefix only", "any.test", "/query?ab=1", ""),
        get("grpc content type", "any.test", "/grpc", "content-type: application/grpc\r\n"),
        get("grpc content type with suffix", "any.test", "/grpc", "content-type: application/grpc+proto\r\n"),
        get("grpc not grpc-web", "any.test", "/grpc", "content-type: application/grpc-web\r\n"),
        get("dot segments", "any.test", "/a/../exact", ""),
        get("encoded unreserved", "any.test", "/%65xact", ""),
        get("backslash", "any.test", "/a\\..\\exact", ""),
        get("double slash kept", "any.test", "//exact", ""),
        get("fragment dropped", "any.test", "/exact#part", ""),
        get("weighted with one entry", "any.test", "/weighted", ""),
        get("cluster from header", "any.test", "/cluster-header", "x-cluster: echo\r\n"),
    ]
}

/// Redirects and direct answers.
pub fn redirects() -> Vec<Case> {
    vec![
        get("redirect host", "any.test", "/redirect/host/a?b=c", ""),
        get("redirect path", "any.test", "/redirect/path/a?b=c", ""),
        get("redirect own query", "any.test", "/redirect/query/a?x=1", ""),
        get("redirect prefix", "any.test", "/redirect/prefix/tail?q", ""),
        get("redirect https", "any.test", "/redirect/https/a", ""),
        get("redirect port", "any.test", "/redirect/port/a", ""),
        get("redirect code", "any.test", "/redirect/code", ""),
        get("redirect see other", "any.test", "/redirect/see", ""),
        get("redirect strip query", "any.test", "/redirect/strip?a=b", ""),
        get("redirect scheme", "any.test", "/redirect/scheme/x", ""),
        get("redirect regex", "any.test", "/redirect/regex/abc?q=1", ""),
        get("redirect https keeps odd port", "any.test:8080", "/redirect/https/a", ""),
        get("redirect https drops default port", "any.test:80", "/redirect/https/a", ""),
        get("redirect host with port", "any.test:8080", "/redirect/host", ""),
        send("redirect post", "POST", "/redirect/host", "", "body"),
        get("direct empty", "any.test", "/direct/empty", ""),
        get("direct teapot", "any.test", "/direct/teapot", ""),
        get("direct with headers", "any.test", "/direct/headers", ""),
        raw("direct to HEAD", "HEAD /direct/teapot HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        send("direct to POST", "POST", "/direct/teapot", "", "hello"),
        get("direct asked to close", "any.test", "/direct/teapot", "connection: close\r\n"),
        get("direct to grpc", "any.test", "/direct/teapot", "content-type: application/grpc\r\n"),
    ]
}

/// Rewrites and header operations.
pub fn rewrites() -> Vec<Case> {
    vec![
        get("rewrite prefix", "any.test", "/rewrite/prefix/tail?q=1", ""),
        get("rewrite prefix whole", "any.test", "/rewrite/prefix", ""),
        get("rewrite prefix string", "any.test", "/rewrite/prefixed", ""),
        get("rewrite slash", "any.test", "/rewrite/slash/a/b", ""),
        get("rewrite regex", "any.test", "/rewrite/regex/one/two?q", ""),
        get("rewrite regex not matching", "any.test", "/rewrite/regex/one", ""),
        get("rewrite host", "any.test", "/rewrite/host", ""),
        get("rewrite host from header", "any.test", "/rewrite/header-host", "x-new-host: fresh.test\r\n"),
        get("rewrite host from missing header", "any.test", "/rewrite/header-host", ""),
        get("rewrite host forwarded", "any.test", "/rewrite/forwarded", ""),
        get(
            "header operations",
            "any.test",
            "/ops",
            "user-agent: curl/8\r\nx-remove: 1\r\nx-do: header=x-from-app:a header=x-from-app-remove:b\r\n",
        ),
        get(
            "header operations on present",
            "any.test",
            "/ops",
            "x-add: mine\r\nx-set: mine\r\nx-if-absent: mine\r\nx-if-there: mine\r\nuser-agent: u\r\n",
        ),
        get(
            "header operations twice present",
            "any.test",
            "/ops",
            "x-set: a\r\nx-set: b\r\nX-Remove: a\r\nx-remove: b\r\n",
        ),
    ]
}

/// What is forwarded, both ways.
pub fn forwarding() -> Vec<Case> {
    vec![
        get("plain forward", "any.test", "/forward", ""),
        get("forward keeps query", "any.test", "/forward?a=%20b&c", ""),
        send("forward body", "POST", "/forward", "", "some body"),
        get("forward host with port", "any.test:1234", "/forward", ""),
        get("forward mixed case headers", "any.test", "/forward", "X-Mixed-Case: Value\r\n"),
        get("forward repeated headers", "any.test", "/forward", "x-a: 1\r\nx-b: 2\r\nx-a: 3\r\n"),
        get("forward empty value", "any.test", "/forward", "x-empty:\r\n"),
        get("forward connection header", "any.test", "/forward", "connection: keep-alive\r\n"),
        get("forward listed hop-by-hop", "any.test", "/forward", "connection: x-hop\r\nx-hop: 1\r\n"),
        get("forward keep-alive header", "any.test", "/forward", "keep-alive: timeout=5\r\n"),
        get("forward proxy-connection", "any.test", "/forward", "proxy-connection: keep-alive\r\n"),
        get("forward te trailers", "any.test", "/forward", "te: trailers\r\n"),
        get("forward te gzip", "any.test", "/forward", "te: gzip\r\n"),
        get(
            "forward request id kept",
            "any.test",
            "/forward",
            "x-request-id: 12345678-1234-4234-9234-123456789012\r\n",
        ),
        get("forward xff kept", "any.test", "/forward", "x-forwarded-for: 1.2.3.4\r\n"),
        get("forward xfp kept", "any.test", "/forward", "x-forwarded-proto: https\r\n"),
        get("forward x-envoy internal", "any.test", "/forward", "x-envoy-internal: true\r\n"),
        get("forward x-envoy time-out", "any.test", "/forward", "x-envoy-upstream-rq-timeout-ms: 7000\r\n"),
        get(
            "forward x-envoy retry-on",
            "any.test",
            "/forward",
            "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 1\r\n",
        ),
        get(
            "forward x-envoy per try",
            "any.test",
            "/forward",
            "x-envoy-upstream-rq-per-try-timeout-ms: 100\r\n",
        ),
        get("forward x-envoy decorator", "any.test", "/forward", "x-envoy-decorator-operation: op\r\n"),
        // Without tracing nobody adds it.
        get("forward decorated route", "any.test", "/decorated", ""),
        get("forward cookie", "any.test", "/forward", "cookie: a=b\r\ncookie: c=d\r\n"),
        get("forward via", "any.test", "/forward", "via: 1.1 other\r\n"),
        get("forward authorization", "any.test", "/forward", "authorization: Bearer x\r\n"),
        get("forward over http2", "any.test", "/h2/path?x=1", "x-a: 1\r\n"),
        send("forward body over http2", "POST", "/h2/path", "x-a: 1\r\n", "hello h2"),
        get("forward cookies over http2", "any.test", "/h2", "cookie: a=b\r\ncookie: c=d\r\n"),
        get(
            "forward hop-by-hop over http2",
            "any.test",
            "/h2",
            "connection: x-hop, close\r\nx-hop: 1\r\nkeep-alive: 1\r\nte: trailers\r\n",
        ),
        send("forward method DELETE", "DELETE", "/forward", "", ""),
        send("forward method PATCH", "PATCH", "/forward", "", ""),
        send("forward method OPTIONS", "OPTIONS", "/forward", "", ""),
        send("forward method PROPFIND", "PROPFIND", "/forward", "", ""),
        send("forward method TRACE", "TRACE", "/forward", "", ""),
        get("response server replaced", "any.test", "/forward", "x-do: header=server:app\r\n"),
        get("response date kept", "any.test", "/forward", "x-do: header=x-a:1 header=x-a:2\r\n"),
        get(
            "response hop-by-hop removed",
            "any.test",
            "/forward",
            "x-do: header=connection:x-hop header=x-hop:1 header=keep-alive:timeout=5 header=proxy-connection:close\r\n",
        ),
        get("response 204", "any.test", "/forward", "x-do: status=204\r\n"),
        get("response 304", "any.test", "/forward", "x-do: status=304\r\n"),
        get("response 404", "any.test", "/forward", "x-do: status=404\r\n"),
        get("response 500", "any.test", "/forward", "x-do: status=500\r\n"),
        get("response 299", "any.test", "/forward", "x-do: status=299\r\n"),
        get("response large", "any.test", "/forward", "x-do: body=300000\r\n"),
        get("response chunked", "any.test", "/forward", "x-do: chunks=5\r\n"),
        get("response chunked over http2", "any.test", "/h2", "x-do: chunks=5\r\n"),
        get("response trailers dropped", "any.test", "/forward", "te: trailers\r\nx-do: trailer=x-t:1\r\n"),
        get("response empty", "any.test", "/forward", "x-do: body=0\r\n"),
        raw("head", "HEAD /forward HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("head of chunked", "HEAD /forward HTTP/1.1\r\nHost: any.test\r\nx-do: chunks=2\r\n\r\n"),
        raw("absolute form", "GET http://exact.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n"),
        raw(
            "absolute form forwarded",
            "GET http://abs.test:81/forward?x HTTP/1.1\r\nHost: other.test\r\n\r\n",
        ),
        raw("absolute form without path", "GET http://exact.test HTTP/1.1\r\nHost: exact.test\r\n\r\n"),
        raw("asterisk", "OPTIONS * HTTP/1.1\r\nHost: any.test\r\n\r\n"),
    ]
}

/// Failures and time-outs.
pub fn failures() -> Vec<Case> {
    vec![
        get("no route", "empty.test", "/x", ""),
        get("no cluster", "missing.test", "/x", ""),
        get("no cluster as 404", "any.test", "/not-found-404", ""),
        get("cluster header names nothing", "any.test", "/cluster-header", "x-cluster: nowhere\r\n"),
        get("cluster header missing", "any.test", "/cluster-header", ""),
        get("no endpoint", "dead.test", "/none", ""),
        get("connection refused", "dead.test", "/", ""),
        get("no route for grpc", "empty.test", "/x", "content-type: application/grpc\r\n"),
        get("refused for grpc", "dead.test", "/", "content-type: application/grpc\r\n"),
        get("no endpoint for grpc", "dead.test", "/none", "content-type: application/grpc\r\n"),
        get("upstream ends without answer", "any.test", "/forward", "x-do: abort\r\n"),
        get("upstream ends without answer over http2", "any.test", "/h2", "x-do: abort\r\n"),
        get("route time-out", "any.test", "/slow", "x-do: sleep=1500\r\n"),
        get(
            "route time-out for grpc",
            "any.test",
            "/slow",
            "x-do: sleep=1500\r\ncontent-type: application/grpc\r\n",
        ),
        get("idle time-out", "any.test", "/idle", "x-do: sleep=1500\r\n"),
        get(
            "time-out from header",
            "any.test",
            "/forward",
            "x-envoy-upstream-rq-timeout-ms: 200\r\nx-do: sleep=1500\r\n",
        ),
        raw("HEAD refused", "HEAD / HTTP/1.1\r\nHost: dead.test\r\n\r\n"),
        send("no route with body", "POST", "/cluster-header", "x-cluster: nowhere\r\n", "abc"),
        tcp("tcp relays", "tcp", "GET / HTTP/1.1\r\nHost: tcp.test\r\n\r\n"),
        tcp("tcp without upstream", "tcp-dead", "hello"),
        tcp("tcp idle", "tcp", "GET / HT"),
    ]
}

/// Retries.
pub fn retries() -> Vec<Case> {
    vec![
        get("5xx exhausted", "retry.test", "/5xx", "x-do: status=503\r\n"),
        get("5xx not for 404", "retry.test", "/5xx", "x-do: status=404\r\n"),
        get("gateway not for 500", "retry.test", "/gateway", "x-do: status=500\r\n"),
        get("gateway for 502", "retry.test", "/gateway", "x-do: status=502\r\n"),
        get("listed code", "retry.test", "/codes", "x-do: status=418\r\n"),
        get("unlisted code", "retry.test", "/codes", "x-do: status=503\r\n"),
        get("connect failure exhausted", "retry.test", "/connect", ""),
        get("reset exhausted", "retry.test", "/reset", "x-do: abort\r\n"),
        get("per try time-out exhausted", "retry.test", "/try", "x-do: sleep=700\r\n"),
        get("attempt count", "retry.test", "/5xx", ""),
        get("retry of a body", "retry.test", "/5xx", ""),
        raw(
            "retry keeps the body",
            "POST /5xx HTTP/1.1\r\nHost: retry.test\r\ncontent-length: 5\r\nx-do: status=500\r\n\r\nhello",
        ),
        get(
            "retry asked by header",
            "any.test",
            "/forward",
            "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 1\r\nx-do: status=503\r\n",
        ),
        get(
            "retry codes by header",
            "any.test",
            "/forward",
            "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 409,410\r\nx-envoy-max-retries: 1\r\nx-do: status=410\r\n",
        ),
    ]
}

/// Message framing.
pub fn framing() -> Vec<Case> {
    vec![
        raw(
            "chunked request",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        ),
        raw(
            "chunk extension",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        ),
        raw(
            "chunked with trailers",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        ),
        raw(
            "chunked upper case",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        ),
        raw(
            "chunked to http2",
            "POST /h2 HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        raw(
            "empty body with length",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 0\r\n\r\n",
        ),
        raw("post without length", "POST /forward HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("get with body", "GET /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 3\r\n\r\nabc"),
        several(
            "keep alive",
            &[
                "GET /exact HTTP/1.1\r\nHost: any.test\r\n\r\n",
                "GET /forward HTTP/1.1\r\nHost: any.test\r\n\r\n",
                "GET /exact HTTP/1.1\r\nHost: any.test\r\n\r\n",
            ],
        ),
        several(
            "keep alive after body",
            &[
                "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 3\r\n\r\nabc",
                "GET /forward HTTP/1.1\r\nHost: any.test\r\n\r\n",
            ],
        ),
        several(
            "keep alive after error",
            &["GET / HTTP/1.1\r\nHost: empty.test\r\n\r\n", "GET /exact HTTP/1.1\r\nHost: any.test\r\n\r\n"],
        ),
        raw("close asked", "GET /forward HTTP/1.1\r\nHost: any.test\r\nconnection: close\r\n\r\n"),
        raw(
            "expect continue",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
        ),
        raw("leading empty line", "\r\nGET /exact HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("long path", format!("GET /forward/{} HTTP/1.1\r\nHost: any.test\r\n\r\n", "a".repeat(8000))),
        raw(
            "many headers within the limit",
            format!("GET /exact HTTP/1.1\r\nHost: any.test\r\n{}\r\n", many_headers(90)),
        ),
        raw("high bytes in a value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-high: cafÃ©\r\n\r\n"),
        raw("tab in a value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-tab: a\tb\r\n\r\n"),
        raw("space after value", "GET /exact HTTP/1.1\r\nHost: any.test   \r\n\r\n"),
        raw("http 1.0 refused", "GET /exact HTTP/1.0\r\nHost: any.test\r\n\r\n"),
    ]
}

/// Messages that are refused, or read in one way only.
pub fn hostile() -> Vec<Case> {
    vec![
        raw(
            "both lengths",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        raw(
            "two lengths",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        ),
        raw(
            "two equal lengths",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        ),
        raw("list of lengths", "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 3, 3\r\n\r\nabc"),
        raw("negative length", "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: -1\r\n\r\n"),
        raw("length with sign", "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: +3\r\n\r\nabc"),
        raw("length not a number", "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: abc\r\n\r\n"),
        raw(
            "length too large",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        ),
        raw(
            "transfer coding list",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        raw(
            "transfer coding unknown",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: gzip\r\n\r\n",
        ),
        raw(
            "transfer coding twice",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        raw(
            "transfer coding identity",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: identity\r\ncontent-length: 0\r\n\r\n",
        ),
        raw("bare line feed", "GET /exact HTTP/1.1\nHost: any.test\n\n"),
        raw("bare carriage return in value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a: b\rc\r\n\r\n"),
        raw("folded header", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a: b\r\n c\r\n\r\n"),
        raw("space before colon", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a : b\r\n\r\n"),
        raw("space in name", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx a: b\r\n\r\n"),
        raw("empty name", "GET /exact HTTP/1.1\r\nHost: any.test\r\n: b\r\n\r\n"),
        raw("no colon", "GET /exact HTTP/1.1\r\nHost: any.test\r\nnonsense\r\n\r\n"),
        raw("null in value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a: b\0c\r\n\r\n"),
        raw("control in value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a: b\x01c\r\n\r\n"),
        raw("delete in value", "GET /exact HTTP/1.1\r\nHost: any.test\r\nx-a: b\x7fc\r\n\r\n"),
        raw("missing host", "GET /exact HTTP/1.1\r\n\r\n"),
        raw("two hosts", "GET /exact HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n"),
        raw("empty host", "GET /exact HTTP/1.1\r\nHost:\r\n\r\n"),
        raw("bad host", "GET /exact HTTP/1.1\r\nHost: a b\r\n\r\n"),
        raw("nonsense", "hello world\r\n\r\n"),
        raw("bad version", "GET /exact HTTP/1.2\r\nHost: any.test\r\n\r\n"),
        raw("version 2 in the line", "GET /exact HTTP/2.0\r\nHost: any.test\r\n\r\n"),
        raw("no version", "GET /exact\r\nHost: any.test\r\n\r\n"),
        raw("space in target", "GET /ex act HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("relative target", "GET exact HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw(
            "bad chunk size",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        ),
        raw(
            "huge chunk size",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
        ),
        raw(
            "chunk without end",
            "POST /forward HTTP/1.1\r\nHost: any.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        ),
        raw(
            "head too large",
            format!("GET /exact HTTP/1.1\r\nHost: any.test\r\nx-large: {}\r\n\r\n", "a".repeat(70000)),
        ),
        raw(
            "too many headers",
            format!("GET /exact HTTP/1.1\r\nHost: any.test\r\n{}\r\n", many_headers(120)),
        ),
        raw("bad escape in path", "GET /exact%zz HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("encoded null", "GET /exact%00 HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("climbing out", "GET /../../exact HTTP/1.1\r\nHost: any.test\r\n\r\n"),
        raw("https on plaintext", "GET https://exact.test/ HTTP/1.1\r\nHost: exact.test\r\n\r\n"),
        raw("user info", "GET http://user:pw@exact.test/ HTTP/1.1\r\nHost: exact.test\r\n\r\n"),
    ]
}

/// Upgrades and CONNECT.
pub fn upgrades() -> Vec<Case> {
    vec![
        get(
            "websocket refused by the backend",
            "any.test",
            "/forward",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get(
            "websocket switched off on the route",
            "any.test",
            "/no-upgrade",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get(
            "websocket towards HTTP/2 that takes none",
            "any.test",
            "/h2",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get(
            "websocket to nobody",
            "dead.test",
            "/",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get(
            "websocket answered by the proxy",
            "any.test",
            "/direct/teapot",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get("upgrade of another kind", "any.test", "/forward", "connection: upgrade\r\nupgrade: other\r\n"),
        get(
            "h2c upgrade",
            "any.test",
            "/forward",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        ),
        get("upgrade without connection", "any.test", "/forward", "upgrade: websocket\r\n"),
        raw("connect refused", "CONNECT any.test:80 HTTP/1.1\r\nHost: any.test:80\r\n\r\n"),
        raw("connect without port", "CONNECT any.test HTTP/1.1\r\nHost: any.test\r\n\r\n"),
    ]
}

fn many_headers(count: usize) -> String {
    (0..count).map(|number| format!("x-{number}: 1\r\n")).collect()
}
