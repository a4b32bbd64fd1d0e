//! A naive reading of Istio's documentation, as slow and plain as can be: random policies as values, their YAML, and what they
//! say of a question. It shares nothing with the code that is tested.

use std::fmt::Write as _;
use std::net::IpAddr;

use rand::RngExt;
use rand::rngs::StdRng;

use super::shop::{ADDRESS, HTTP, Question, TCP, Verdict};

/// Policies of the workload.
#[derive(Debug)]
pub struct Policies(Vec<Policy>);

#[derive(Debug)]
struct Policy {
    deny: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    from: Vec<Vec<Field>>,
    to: Vec<Vec<Field>>,
    when: Vec<Field>,
}

/// A field and its `not` form.
#[derive(Debug)]
struct Field {
    kind: Kind,
    values: Vec<&'static str>,
    not_values: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Principals,
    Namespaces,
    ServiceAccounts,
    IpBlocks,
    RemoteIpBlocks,
    Hosts,
    Ports,
    Methods,
    Paths,
    Header,
    ServerName,
    DestinationIp,
}

const SOURCES: [Kind; 5] =
    [Kind::Principals, Kind::Namespaces, Kind::ServiceAccounts, Kind::IpBlocks, Kind::RemoteIpBlocks];
const OPERATIONS: [Kind; 4] = [Kind::Hosts, Kind::Ports, Kind::Methods, Kind::Paths];
const CONDITIONS: [Kind; 6] = [
    Kind::Header,
    Kind::ServerName,
    Kind::DestinationIp,
    Kind::Ports,
    Kind::Principals,
    Kind::RemoteIpBlocks,
];

impl Kind {
    /// Values that policies have.
    fn values(self) -> &'static [&'static str] {
        match self {
            Self::Principals => &[
                "cluster.local/ns/bar/sa/web",
                "*/ns/bar/sa/web",
                "cluster.local/ns/bar/*",
                "*",
                "*/sa/db",
                "x.y/ns/bar/sa/web",
            ],
            Self::Namespaces => &["bar", "ba*", "*r", "foo", "b*r", "*"],
            Self::ServiceAccounts => &["web", "bar/web", "bar/db", "foo/w.b"],
            Self::IpBlocks | Self::RemoteIpBlocks => &["10.0.0.0/30", "10.0.0.2", "10.0.0.0/8", "fd00::/16"],
            Self::Hosts => &["api.foo", "*.foo", "api*", "*", "API.FOO:80"],
            Self::Ports => &["8080", "9000", "80"],
            Self::Methods => &["GET", "P*", "*T", "*"],
            Self::Paths => &["/a", "/a*", "*c", "/a/{*}", "/a/{**}", "/{*}/b", "*", "/{**}/c"],
            Self::Header => &["one", "o*", "*e", "*", "two"],
            Self::ServerName => &["api.foo", "*.foo", "api*", "*"],
            Self::DestinationIp => &["10.1.0.9", "10.1.0.0/24", "10.2.0.0/16"],
        }
    }

    fn is_http(self) -> bool {
        matches!(self, Self::Hosts | Self::Methods | Self::Paths | Self::Header)
    }

    fn field(self) -> &'static str {
        match self {
            Self::Principals => "principals",
            Self::Namespaces => "namespaces",
            Self::ServiceAccounts => "serviceAccounts",
            Self::IpBlocks => "ipBlocks",
            Self::RemoteIpBlocks => "remoteIpBlocks",
            Self::Hosts => "hosts",
            Self::Ports => "ports",
            Self::Methods => "methods",
            Self::Paths => "paths",
            Self::Header | Self::ServerName | Self::DestinationIp => "values",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Header => "request.headers[X-Header]",
            Self::ServerName => "connection.sni",
            Self::DestinationIp => "destination.ip",
            Self::Ports => "destination.port",
            Self::Principals => "source.principal",
            _ => "remote.ip",
        }
    }
}

fn pick<T: Copy>(random: &mut StdRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}

fn some(random: &mut StdRng, kind: Kind) -> Field {
    let mut list =
        |most: usize| (0..random.random_range(0..=most)).map(|_| pick(random, kind.values())).collect();
    let (mut values, not_values): (Vec<_>, Vec<_>) = (list(2), list(1));
    if values.is_empty() && not_values.is_empty() {
        values.push(pick(random, kind.values()));
    }
    Field { kind, values, not_values }
}

/// A source or operation with one or two fields.
fn group(random: &mut StdRng, kinds: &[Kind]) -> Vec<Field> {
    let first = pick(random, kinds);
    let second = pick(random, kinds);
    let accounts = [first, second].contains(&Kind::ServiceAccounts);
    let excluded = |kind| accounts && matches!(kind, Kind::Principals | Kind::Namespaces);
    let mut fields = vec![some(random, first)];
    if second != first && !excluded(first) && !excluded(second) && random.random_ratio(1, 2) {
        fields.push(some(random, second));
    }
    fields
}

impl Policies {
    /// One to three policies of one or two rules.
    pub fn random(random: &mut StdRng) -> Self {
        let rule = |random: &mut StdRng| Rule {
            from: (0..random.random_range(0..=2)).map(|_| group(random, &SOURCES)).collect(),
            to: (0..random.random_range(0..=2)).map(|_| group(random, &OPERATIONS)).collect(),
            when: (0..random.random_range(0..=1))
                .map(|_| {
                    let kind = pick(random, &CONDITIONS);
                    some(random, kind)
                })
                .collect(),
        };
        let policies = (0..random.random_range(1..=3)).map(|_| Policy {
            deny: random.random_ratio(1, 2),
            rules: (0..random.random_range(1..=2)).map(|_| rule(random)).collect(),
        });
        Self(policies.collect())
    }

    /// As people write them.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        for (number, policy) in self.0.iter().enumerate() {
            let action = if policy.deny { "DENY" } else { "ALLOW" };
            let _ = writeln!(
                text,
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{number}, namespace: foo}}\nspec:\n  action: {action}\n  rules:"
            );
            for rule in &policy.rules {
                let groups = |name: &str, groups: &[Vec<Field>]| {
                    let groups: Vec<String> = groups
                        .iter()
                        .map(|fields| {
                            let fields: Vec<String> = fields.iter().map(Field::written).collect();
                            format!("{{{name}: {{{}}}}}", fields.join(", "))
                        })
                        .collect();
                    groups.join(", ")
                };
                let mut parts = Vec::new();
                if !rule.from.is_empty() {
                    parts.push(format!("from: [{}]", groups("source", &rule.from)));
                }
                if !rule.to.is_empty() {
                    parts.push(format!("to: [{}]", groups("operation", &rule.to)));
                }
                if let [condition] = &rule.when[..] {
                    parts.push(format!(
                        "when: [{{key: '{}', values: {:?}, notValues: {:?}}}]",
                        condition.kind.key(),
                        condition.values,
                        condition.not_values
                    ));
                }
                let _ = writeln!(text, "  - {{{}}}", parts.join(", "));
            }
            text.push_str("---\n");
        }
        text
    }

    /// What they say, read from the top: deny, then allow, then the rest.
    pub fn verdict(&self, question: &Question) -> Verdict {
        let tcp = question.port == TCP;
        let matches =
            |policy: &Policy| policy.rules.iter().any(|rule| rule.matches(question, tcp, policy.deny));
        if self.0.iter().filter(|policy| policy.deny).any(matches) {
            return Verdict::Denied;
        }
        let mut allowing = self.0.iter().filter(|policy| !policy.deny).peekable();
        if allowing.peek().is_none() || allowing.any(matches) { Verdict::Allowed } else { Verdict::Denied }
    }
}

impl Rule {
    fn matches(&self, question: &Question, tcp: bool, deny: bool) -> bool {
        let mut all = self.from.iter().chain(&self.to).flatten().chain(&self.when);
        if tcp && !deny && all.any(|field| field.kind.is_http()) {
            return false;
        }
        let one = |field: &Field| (tcp && field.kind.is_http()) || field.matches(question);
        let some_of =
            |groups: &[Vec<Field>]| groups.is_empty() || groups.iter().any(|fields| fields.iter().all(one));
        some_of(&self.from) && some_of(&self.to) && self.when.iter().all(one)
    }
}

impl Field {
    fn written(&self) -> String {
        let name = self.kind.field();
        let not = format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
        let mut parts = Vec::new();
        for (name, values) in [(name, &self.values), (not.as_str(), &self.not_values)] {
            if !values.is_empty() {
                parts.push(format!("{name}: {values:?}"));
            }
        }
        parts.join(", ")
    }

    fn matches(&self, question: &Question) -> bool {
        let is = |value: &&str| self.kind.is(value, question);
        (self.values.is_empty() || self.values.iter().any(is)) && !self.not_values.iter().any(is)
    }
}

/// `*` alone: not empty; first or last: the rest is how it ends or begins; else the whole.
fn text(value: &str, found: &str) -> bool {
    match value {
        "*" => !found.is_empty(),
        value if value.starts_with('*') => found.ends_with(&value[1..]),
        value if value.ends_with('*') => found.starts_with(&value[..value.len() - 1]),
        value => value == found,
    }
}

/// Trust domain, namespace and account of an identity.
fn identity(peer: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = peer.split('/').collect();
    (parts[2], parts[4], parts[6])
}

fn within(range: &str, ip: IpAddr) -> bool {
    let (network, length) = range.split_once('/').unwrap_or((range, "32"));
    let length: u32 = length.parse().expect("a length");
    match (network.parse().expect("an address"), ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let shift = 32 - length;
            u32::from(network) >> shift == u32::from(ip) >> shift
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let shift = 128 - length;
            u128::from(network) >> shift == u128::from(ip) >> shift
        }
        _ => false,
    }
}

impl Kind {
    fn is(self, value: &str, question: &Question) -> bool {
        let headers = |name: &str| {
            let name = name.to_owned();
            question
                .headers
                .iter()
                .filter(move |(n, _)| n.eq_ignore_ascii_case(&name))
                .map(|(_, v)| v.clone())
        };
        let forwarded = || headers("x-forwarded-for").next_back().and_then(|value| value.parse().ok());
        match self {
            Self::Principals => question.peer.iter().any(|peer| match value.strip_suffix("/*") {
                // cluster.local/ns/bar/*
                Some(start) => {
                    peer.strip_prefix("spiffe://").is_some_and(|rest| rest.starts_with(&format!("{start}/")))
                }
                None => text(value, peer.strip_prefix("spiffe://").unwrap_or_default()),
            }),
            Self::Namespaces => question.peer.iter().any(|peer| {
                let namespace = identity(peer).1;
                match value {
                    "*" => true,
                    "b*r" => namespace.starts_with('b') && namespace.ends_with('r'),
                    value => text(value, namespace),
                }
            }),
            Self::ServiceAccounts => question.peer.iter().any(|peer| {
                let (_, namespace, account) = identity(peer);
                value.split_once('/').unwrap_or(("foo", value)) == (namespace, account)
            }),
            Self::IpBlocks => within(value, question.source),
            Self::RemoteIpBlocks if question.port == TCP => within(value, question.source),
            Self::RemoteIpBlocks => within(value, forwarded().unwrap_or(question.source)),
            Self::Hosts => text(&value.to_lowercase(), &question.host.to_lowercase()),
            Self::Ports => value == question.port.to_string(),
            Self::Methods => text(value, &question.method),
            Self::Paths => path(value, question.path.split('?').next().unwrap_or_default()),
            Self::Header if value == "*" => headers("x-header").next().is_some(),
            Self::Header => headers("x-header").any(|found| text(value, &found)),
            Self::ServerName => text(value, question.server_name.as_deref().unwrap_or_default()),
            Self::DestinationIp => within(value, ADDRESS.parse().expect("an address")),
        }
    }
}

fn path(value: &str, path: &str) -> bool {
    let parts: Vec<&str> = path[1..].split('/').collect();
    match value {
        "/a/{*}" => parts.len() == 2 && parts[0] == "a" && !parts[1].is_empty(),
        "/a/{**}" => parts.len() > 1 && parts[0] == "a",
        "/{*}/b" => parts.len() == 2 && !parts[0].is_empty() && parts[1] == "b",
        "/{**}/c" => parts.len() > 1 && parts[parts.len() - 1] == "c",
        value => text(value, path),
    }
}

/// A random question, of the words that policies are made of.
pub fn ask(random: &mut StdRng) -> Question {
    let peers = [
        "spiffe://cluster.local/ns/bar/sa/web",
        "spiffe://cluster.local/ns/foo/sa/web",
        "spiffe://x.y/ns/bar/sa/web",
        "spiffe://cluster.local/ns/baz/sa/db",
        "spiffe://cluster.local/ns/bar/sa/db",
        "spiffe://cluster.local/ns/foo/sa/w.b",
    ];
    let mut headers = Vec::new();
    for _ in 0..random.random_range(0..3) {
        headers.push(("x-header".to_owned(), pick(random, &["one", "two", "onetwo"]).to_owned()));
    }
    if random.random_ratio(1, 4) {
        let client = pick(random, &["10.0.0.2", "10.0.0.200", "192.0.2.1"]);
        headers.push(("x-forwarded-for".to_owned(), client.to_owned()));
    }
    let addresses: [IpAddr; 4] = [
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        [10, 9, 0, 1].into(),
        "fd00::1".parse().expect("an address"),
    ];
    Question {
        port: pick(random, &[HTTP, HTTP, TCP, 7777]),
        peer: if random.random_ratio(3, 4) { vec![pick(random, &peers).into()] } else { Vec::new() },
        source: pick(random, &addresses),
        server_name: if random.random_ratio(1, 2) {
            Some(pick(random, &["api.foo", "x.foo", "api"]).into())
        } else {
            None
        },
        method: pick(random, &["GET", "POST", "PUT", "HEAD"]).to_owned(),
        path: pick(random, &["/", "/a", "/a/b", "/a/", "/ab", "/a/b/c", "/x/b", "/c", "/x/c?q=/a", "/a?b"])
            .to_owned(),
        host: pick(random, &["api.foo", "API.foo", "x.foo", "api", "api.foo:80"]).to_owned(),
        headers,
    }
}
