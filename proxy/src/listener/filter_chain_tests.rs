//! Tables from Envoy's documentation, and the compiled matcher against a naive one.

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("network")
}

fn names(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|n| Arc::from(*n)).collect()
}

fn inputs(destination: &str) -> ConnectionInputs {
    ConnectionInputs {
        source: "192.0.2.7:40000".parse().expect("source"),
        destination: destination.parse().expect("destination"),
        transport: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
    }
}

fn tls(server_name: &str, alpn: &[&str]) -> ConnectionInputs {
    ConnectionInputs {
        transport: TransportProtocol::Tls,
        server_name: Some(server_name.into()),
        application_protocols: names(alpn),
        ..inputs("10.0.0.1:443")
    }
}

fn all() -> ChainMatch {
    ChainMatch::default()
}

fn find(chains: &[ChainMatch], inputs: &ConnectionInputs) -> Option<usize> {
    ChainMatcher::new(chains).expect("no overlap").find(inputs)
}

#[test]
fn the_port_decides_first_and_there_is_no_way_back() {
    let chains = [
        ChainMatch { destination_port: Some(80), source_ports: vec![1], ..all() },
        all(),
        ChainMatch { destination_port: Some(81), ..all() },
    ];
    assert_eq!(find(&chains, &inputs("10.0.0.1:81")), Some(2));
    assert_eq!(find(&chains, &inputs("10.0.0.1:82")), Some(1));
    assert_eq!(find(&chains, &inputs("10.0.0.1:80")), None, "port 80 has chains of its own, none matches");
}

#[test]
fn the_longest_destination_prefix_wins() {
    let chains = [
        ChainMatch { prefix_ranges: vec![net("10.0.0.0/8"), net("fd00::/8")], ..all() },
        ChainMatch { prefix_ranges: vec![net("10.1.0.0/16")], ..all() },
        ChainMatch { prefix_ranges: vec![net("10.1.2.3/32")], ..all() },
        all(),
    ];
    for (destination, chain) in [
        ("10.1.2.3:80", 2),
        ("10.1.2.4:80", 1),
        ("10.2.0.1:80", 0),
        ("[fd00::1]:80", 0),
        ("[::ffff:10.1.2.3]:80", 2),
        ("11.0.0.1:80", 3),
        ("[2001:db8::1]:80", 3),
    ] {
        assert_eq!(find(&chains, &inputs(destination)), Some(chain), "{destination}");
    }
}

#[test]
fn server_names_go_from_exact_over_the_longest_wildcard_to_any() {
    let chains = [
        ChainMatch { server_names: names(&["www.example.com"]), ..all() },
        ChainMatch { server_names: names(&["*.example.com"]), ..all() },
        ChainMatch { server_names: names(&["*.com", "org"]), ..all() },
        all(),
    ];
    for (name, chain) in [
        ("www.example.com", 0),
        ("a.example.com", 1),
        ("a.b.example.com", 1),
        ("example.com", 2),
        ("org", 2),
        ("a.org", 3),
        (".com", 3),
        ("com", 3),
        ("", 3),
    ] {
        assert_eq!(find(&chains, &tls(name, &[])), Some(chain), "{name}");
    }
}

#[test]
fn transport_comes_before_application_protocols_and_the_clients_order_decides_among_these() {
    let chains = [
        ChainMatch {
            transport: Some(TransportProtocol::Tls),
            application_protocols: names(&["h2"]),
            ..all()
        },
        ChainMatch {
            transport: Some(TransportProtocol::Tls),
            application_protocols: names(&["http/1.1"]),
            ..all()
        },
        ChainMatch { application_protocols: names(&["http/1.1", "h2c"]), ..all() },
        all(),
    ];
    assert_eq!(find(&chains, &tls("a", &["http/1.1", "h2"])), Some(1));
    assert_eq!(find(&chains, &tls("a", &["h2", "http/1.1"])), Some(0));
    assert_eq!(find(&chains, &tls("a", &["spdy"])), None, "TLS has chains of its own");
    let plain = ConnectionInputs { application_protocols: names(&["h2c"]), ..inputs("10.0.0.1:80") };
    assert_eq!(find(&chains, &plain), Some(2));
    assert_eq!(find(&chains, &inputs("10.0.0.1:80")), Some(3));
}

/// As pilot sends a port that is detected: with the transport left out of the second chain, bytes would find none, as in Envoy.
#[test]
fn a_detected_port_names_its_transport_in_both_chains() {
    let (any, raw) = (vec![net("0.0.0.0/0")], Some(TransportProtocol::RawBuffer));
    let http = ChainMatch {
        prefix_ranges: any.clone(),
        transport: raw,
        application_protocols: names(&["http/1.1", "h2c"]),
        ..all()
    };
    let tcp = ChainMatch { prefix_ranges: any.clone(), transport: raw, ..all() };
    let h2c = ConnectionInputs { application_protocols: names(&["h2c"]), ..inputs("10.0.0.1:7") };
    let chains = [http.clone(), tcp];
    assert_eq!((find(&chains, &h2c), find(&chains, &inputs("10.0.0.1:7"))), (Some(0), Some(1)));
    let lax = [http, ChainMatch { prefix_ranges: any, ..all() }];
    assert_eq!((find(&lax, &h2c), find(&lax, &inputs("10.0.0.1:7"))), (Some(0), None));
}

#[test]
fn sources_are_asked_last() {
    let chains = [
        ChainMatch { source_type: SourceType::SameIpOrLoopback, ..all() },
        ChainMatch { source_ranges: vec![net("192.0.2.0/24")], source_ports: vec![40000], ..all() },
        ChainMatch { source_ranges: vec![net("192.0.2.0/24")], ..all() },
        ChainMatch { direct_source_ranges: vec![net("198.51.100.0/24")], ..all() },
    ];
    let from =
        |source: &str| ConnectionInputs { source: source.parse().expect("source"), ..inputs("10.0.0.1:80") };
    for (source, chain) in [
        ("192.0.2.7:40000", Some(1)),
        ("192.0.2.7:40001", Some(2)),
        ("127.0.0.1:1", Some(0)),
        ("10.0.0.1:1", Some(0)),
        ("198.51.100.9:1", Some(3)),
        ("203.0.113.1:1", None),
    ] {
        assert_eq!(find(&chains, &from(source)), chain, "{source}");
    }
}

#[test]
fn chains_that_say_the_same_are_refused() {
    let a = ChainMatch { destination_port: Some(80), server_names: names(&["a", "b"]), ..all() };
    let b = ChainMatch { destination_port: Some(80), server_names: names(&["b", "c"]), ..all() };
    let overlap = ChainMatcher::new([&all(), &a, &b]).expect_err("b is in both");
    assert_eq!(overlap, Overlap { first: 1, second: 2 });
    let twice = ChainMatch { server_names: names(&["a", "a"]), ..all() };
    assert!(ChainMatcher::new([&twice]).is_ok());
}

/// The rule of Envoy's documentation, word for word: at each criterion, the candidates with the most specific match survive.
fn naive(chains: &[ChainMatch], inputs: &ConnectionInputs) -> Option<usize> {
    let mut alive: Vec<usize> = (0..chains.len()).collect();
    let mut step = |rank: &dyn Fn(&ChainMatch) -> Option<u32>| {
        let best = alive.iter().filter_map(|i| rank(&chains[*i])).max();
        alive.retain(|i| best.is_some() && rank(&chains[*i]) == best);
    };
    let prefix = |nets: &[IpNet], ip: IpAddr| -> Option<u32> {
        let longest = nets.iter().filter(|n| n.contains(&ip)).map(|n| u32::from(n.prefix_len()) + 1).max();
        if nets.is_empty() { Some(0) } else { longest }
    };
    let exact = |wanted: Option<bool>| match wanted {
        None => Some(0),
        Some(true) => Some(1),
        Some(false) => None,
    };
    step(&|c| exact(c.destination_port.map(|p| p == inputs.destination.port())));
    step(&|c| prefix(&c.prefix_ranges, inputs.destination.ip()));
    let sni = inputs.server_name.as_deref().unwrap_or("");
    step(&|c| {
        let rank = |name: &Arc<str>| match name.strip_prefix('*') {
            Some(suffix) => {
                (sni.len() > suffix.len() && sni.ends_with(suffix)).then_some(suffix.len() as u32)
            }
            None => (**name == *sni).then_some(u32::MAX),
        };
        if c.server_names.is_empty() { Some(0) } else { c.server_names.iter().filter_map(rank).max() }
    });
    step(&|c| exact(c.transport.map(|t| t == inputs.transport)));
    step(&|c| {
        let rank = |at: usize| 1000 - at as u32;
        let found = inputs.application_protocols.iter().position(|p| c.application_protocols.contains(p));
        if c.application_protocols.is_empty() { Some(0) } else { found.map(rank) }
    });
    step(&|c| prefix(&c.direct_source_ranges, inputs.source.ip()));
    step(&|c| match c.source_type {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => inputs.is_local().then_some(1),
        SourceType::External => (!inputs.is_local()).then_some(1),
    });
    step(&|c| prefix(&c.source_ranges, inputs.source.ip()));
    step(&|c| {
        let wanted = (!c.source_ports.is_empty()).then(|| c.source_ports.contains(&inputs.source.port()));
        exact(wanted)
    });
    assert!(alive.len() < 2, "overlap");
    alive.first().copied()
}

fn some_nets() -> impl Strategy<Value = Vec<IpNet>> {
    let texts =
        prop::sample::select(vec!["10.0.0.0/8", "10.0.0.0/16", "10.0.0.1/32", "0.0.0.0/0", "fd00::/8"]);
    prop::collection::vec(texts.prop_map(net), 0..3)
}

fn some_names(list: Vec<&'static str>) -> impl Strategy<Value = Vec<Arc<str>>> {
    prop::collection::vec(prop::sample::select(list).prop_map(Arc::from), 0..3)
}

fn some_match() -> impl Strategy<Value = ChainMatch> {
    let transport =
        prop::option::of(prop::sample::select(vec![TransportProtocol::RawBuffer, TransportProtocol::Tls]));
    let kind =
        prop::sample::select(vec![SourceType::Any, SourceType::SameIpOrLoopback, SourceType::External]);
    (
        prop::option::of(80u16..82),
        some_nets(),
        some_names(vec!["a.b.c", "*.b.c", "*.c", "c", "b.c"]),
        transport,
        some_names(vec!["h2", "http/1.1", "h2c"]),
        some_nets(),
        kind,
        some_nets(),
        prop::collection::vec(1u16..3, 0..2),
    )
        .prop_map(|(port, nets, names, transport, protocols, direct, kind, sources, ports)| ChainMatch {
            destination_port: port,
            prefix_ranges: nets,
            server_names: names,
            transport,
            application_protocols: protocols,
            direct_source_ranges: direct,
            source_type: kind,
            source_ranges: sources,
            source_ports: ports,
        })
}

fn some_inputs() -> impl Strategy<Value = ConnectionInputs> {
    let ip = || {
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.9.9.9", "192.0.2.1", "fd00::1", "127.0.0.1"])
    };
    let name = prop::sample::select(vec!["", "a.b.c", "x.b.c", "b.c", "c", "x.y"]);
    let protocols = prop::sample::subsequence(vec!["h2", "http/1.1", "h2c", "x"], 0..4).prop_shuffle();
    (ip(), 1u16..4, ip(), 80u16..83, proptest::bool::ANY, name, protocols).prop_map(
        |(source, source_port, destination, port, tls, name, protocols)| ConnectionInputs {
            source: (source.parse::<IpAddr>().expect("ip"), source_port).into(),
            destination: (destination.parse::<IpAddr>().expect("ip"), port).into(),
            transport: if tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer },
            server_name: (!name.is_empty()).then(|| name.into()),
            application_protocols: names(&protocols),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_compiled_matcher_equals_the_rule(
        chains in prop::collection::vec(some_match(), 1..8),
        asked in prop::collection::vec(some_inputs(), 1..16),
    ) {
        // Drop chains until none overlap, as a control plane that was refused would.
        let mut kept: Vec<ChainMatch> = Vec::new();
        for chain in chains {
            kept.push(chain);
            if ChainMatcher::new(&kept).is_err() {
                kept.pop();
            }
        }
        let matcher = ChainMatcher::new(&kept).expect("no overlap");
        for inputs in asked {
            prop_assert_eq!(matcher.find(&inputs), naive(&kept, &inputs), "{:?}", inputs);
        }
    }
}
