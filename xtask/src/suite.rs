//! The test suites: what each runs, what it needs. `cargo xtask test --list` prints this table.

use crate::part::Part;

/// One suite.
pub struct Suite {
    /// Name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Real parts that it runs against.
    pub parts: &'static [Part],
    /// What is run.
    pub runs: Runs,
}

/// What a suite runs.
pub enum Runs {
    /// `cargo test` with these arguments.
    Cargo(&'static [&'static str]),
    /// `osier demo --check`: each figure counts as a test.
    Demo,
}

const NGINX: Part = Part::Debian { package: "nginx-light", program: "nginx" };
const REDIS: Part = Part::Debian { package: "redis-server", program: "redis-server" };
const MARIADB: Part = Part::Debian { package: "mariadb-server-core", program: "mariadbd" };
const MARIADB_CLIENT: Part = Part::Debian { package: "mariadb-client-core", program: "mariadb" };
/// Brings its client, and its server below /usr/lib/postgresql.
const POSTGRESQL: Part = Part::Debian { package: "postgresql", program: "pg_ctlcluster" };
const NFTABLES: Part = Part::Debian { package: "nftables", program: "nft" };
const IPROUTE: Part = Part::Debian { package: "iproute2", program: "ip" };
const CURL: Part = Part::Debian { package: "curl", program: "curl" };
const PROMETHEUS: Part = Part::Debian { package: "prometheus", program: "prometheus" };
const NGHTTP2: Part = Part::Debian { package: "nghttp2-client", program: "h2load" };
const BUSYBOX: Part = Part::Debian { package: "busybox-static", program: "/bin/busybox" };

/// All suites, in the order in which they run.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "tests beside the code: semantics as tables, properties, simulation of xDS with 256 seeds",
        parts: &[],
        runs: Runs::Cargo(&["--workspace", "--exclude", "osier-tests"]),
    },
    Suite {
        name: "tidy",
        about: "layering, module heads, listed exceptions, links of the docs",
        parts: &[],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "tidy"]),
    },
    Suite {
        name: "authorization",
        about: "from the YAML of policies to the verdict: pilot compiles them, the proxy decides; random ones against a naive reading",
        parts: &[],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "authorization"]),
    },
    Suite {
        name: "oracle",
        about: "the same bootstrap and the same requests to osier-proxy and to Envoy, answers compared",
        parts: &[Part::Python],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "oracle"]),
    },
    Suite {
        name: "peers",
        about: "Envoy and gRPC as clients of osier-pilot, with certificates of an agent; a misbehaving xDS server for osier-proxy",
        parts: &[Part::Python, NGINX],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "peers"]),
    },
    Suite {
        name: "netns",
        about: "capture in network namespaces of our own, IPv4 and IPv6, nginx in pods of Kubernetes' making (needs root)",
        parts: &[NFTABLES, IPROUTE, CURL, NGINX, Part::Python],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "netns"]),
    },
    Suite {
        name: "http2",
        about: "h2spec, h2load and nghttp against osier-proxy",
        parts: &[Part::H2spec, NGHTTP2],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "http2"]),
    },
    Suite {
        name: "applications",
        about: "nginx, redis, MariaDB, PostgreSQL, gRPC and WebSocket behind sidecars, started with `osier up` and `osier run`",
        parts: &[NGINX, REDIS, MARIADB, MARIADB_CLIENT, POSTGRESQL, CURL, Part::Python],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "applications"]),
    },
    Suite {
        name: "cli",
        about: "a mesh of `osier up` and `osier run`, looked into with proxy-status and proxy-config",
        parts: &[],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "cli"]),
    },
    Suite {
        name: "chart",
        about: "Helm makes of the chart what `osier install` makes of it",
        parts: &[Part::Helm],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "chart"]),
    },
    Suite {
        name: "prometheus",
        about: "Prometheus scrapes sidecars and pilot, promtool checks what they say, queries give what was sent",
        parts: &[PROMETHEUS],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "prometheus-server"]),
    },
    Suite {
        name: "mesh",
        about: "bad input, crashes, a full disk, taken ports, faulty backends, TLS inside and outside, 1,000 changes under load",
        parts: &[NGINX],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "mesh"]),
    },
    Suite {
        name: "demo",
        about: "the story of `osier demo`, each figure checked",
        parts: &[],
        runs: Runs::Demo,
    },
    Suite {
        name: "cluster",
        about: "the mesh on a real Kubernetes of `cargo xtask cluster`: installation, injection, rollouts, outages, walkthroughs (needs root)",
        parts: &[BUSYBOX, NFTABLES, Part::Browser],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "cluster", "--", "--nocapture"]),
    },
];

/// Prints the table of suites.
pub fn print_list() {
    for suite in SUITES {
        let needs: Vec<&str> = suite.parts.iter().map(Part::name).collect();
        let needs = if needs.is_empty() { String::new() } else { format!(" [needs {}]", needs.join(", ")) };
        println!("{:<14}{}{needs}", suite.name, suite.about);
    }
}

/// The module of nginx that relays TCP, at the place that its package and `tests/bench/config/nginx.conf` name.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What the benchmark compares with and drives.
pub const BENCH_PARTS: [Part; 6] = [
    Part::Python,
    NGINX,
    Part::Debian { package: "libnginx-mod-stream", program: NGINX_STREAM },
    Part::Debian { package: "haproxy", program: "haproxy" },
    Part::Debian { package: "wrk", program: "wrk" },
    NGHTTP2,
];
