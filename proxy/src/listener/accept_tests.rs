//! Real sockets: listener updates close nothing, removal stops politely, a taken port is an error that says so.

use std::io::{Read, Write};
use std::net::TcpStream as Client;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::worker::Workers;

/// Answers each line with the listener's name, to show which version of what served.
fn echo_name(accepted: Accepted) {
    tokio::spawn(async move {
        // Whole: what counts the connection is to live as long as it does.
        let mut accepted = accepted;
        let mut byte = [0; 1];
        while accepted.tcp.read(&mut byte).await.is_ok_and(|n| n == 1) {
            let name = format!("{}\n", accepted.listener);
            if accepted.tcp.write_all(name.as_bytes()).await.is_err() {
                return;
            }
        }
    });
}

fn snapshot(listeners: Vec<Listener>) -> Snapshot {
    Snapshot::new(listeners.into_iter().map(Arc::new))
}

fn listener(name: &str, address: SocketAddr) -> Listener {
    Listener::plain(name, address)
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("address")
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind(any_port()).and_then(|l| l.local_addr()).expect("a free port")
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).expect("connect");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("time-out");
    client
}

fn ask(client: &mut Client) -> String {
    client.write_all(b"?").expect("ask");
    let mut answer = String::new();
    let mut byte = [0; 1];
    while client.read(&mut byte).expect("answer") == 1 && byte[0] != b'\n' {
        answer.push(byte[0].into());
    }
    answer
}

fn refused(address: SocketAddr) -> bool {
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if Client::connect(address).is_err() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn updates_close_nothing_and_removal_lets_connections_finish() {
    let workers = Workers::start(2, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), echo_name);
    let (first, second) = (free_address(), free_address());
    assert!(acceptors.apply(&snapshot(vec![listener("one", first), listener("two", second)])).is_empty());
    let mut clients: Vec<_> = (0..8).map(|_| connect(first)).collect();
    assert!(clients.iter_mut().all(|c| ask(c) == "one"));
    let mut other = connect(second);

    // A new version at the same address, under another name: the socket stays, new connections see the new name.
    assert!(acceptors.apply(&snapshot(vec![listener("uno", first), listener("two", second)])).is_empty());
    let begun = std::time::Instant::now();
    while ask(&mut connect(first)) != "uno" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the new name never shows");
    }
    assert!(clients.iter_mut().all(|c| ask(c) == "one"), "open connections don't notice");

    // Removed: no new connections, open ones go on.
    assert!(acceptors.apply(&snapshot(vec![listener("two", second)])).is_empty());
    assert!(refused(first));
    assert!(clients.iter_mut().all(|c| ask(c) == "one"));
    assert_eq!(ask(&mut other), "two");
    assert_eq!(acceptors.addresses(), [("two".into(), second)]);
    acceptors.close(false);
    assert!(refused(second));
    assert_eq!(ask(&mut other), "two");
    workers.stop();
}

/// Tells who is connected with whom.
fn tell_ends(mut accepted: Accepted) {
    tokio::spawn(async move {
        let local = canonical(accepted.tcp.local_addr().expect("an address"));
        let text = format!("{} {}\n", accepted.peer, local.ip());
        let _ = accepted.tcp.write_all(text.as_bytes()).await;
    });
}

#[test]
fn one_socket_takes_both_families_and_each_is_seen_as_what_it_is() {
    let workers = Workers::start(1, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), tell_ends);
    let any = "[::]:0".parse().expect("address");
    let both = Listener { ipv4_compat: true, ..listener("both", any) };
    let ipv6 = listener("ipv6", any);
    let [port, other] = [&both, &ipv6].map(|listener| acceptors.open(listener).expect("bind").port());
    assert!(acceptors.apply(&snapshot(vec![both, ipv6])).is_empty());
    for ip in ["127.0.0.1", "::1"] {
        let ip: std::net::IpAddr = ip.parse().expect("address");
        let mut client = connect(SocketAddr::new(ip, port));
        let mut text = String::new();
        client.read_to_string(&mut text).expect("answer");
        assert_eq!(text, format!("{} {ip}\n", client.local_addr().expect("address")));
    }
    assert!(Client::connect(("::1", other)).is_ok());
    assert!(Client::connect(("127.0.0.1", other)).is_err(), "IPv6 alone, as it says");
    workers.stop();
}

#[test]
fn a_socket_of_one_family_does_not_become_one_of_both() {
    let workers = Workers::start(1, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), echo_name);
    let taken = std::net::TcpListener::bind("[::1]:0").and_then(|l| l.local_addr()).expect("a free port");
    let address = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), taken.port());
    let both = Listener { ipv4_compat: true, ..listener("l", address) };
    assert!(acceptors.apply(&snapshot(vec![listener("l", address)])).is_empty());
    let error = acceptors.open(&both).expect_err("the port is in use");
    assert!(error.to_string().contains("Address already in use"), "{error}");
    assert_eq!(ask(&mut connect(SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), taken.port()))), "l");
    workers.stop();
}

#[test]
fn a_port_in_use_is_an_error_and_the_others_serve() {
    let workers = Workers::start(1, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), echo_name);
    let taken = std::net::TcpListener::bind(any_port()).expect("bind");
    let address = taken.local_addr().expect("address");
    let good = free_address();
    let failed = acceptors.apply(&snapshot(vec![listener("bad", address), listener("good", good)]));
    let texts: Vec<_> = failed.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [format!("listener bad: cannot listen on {address}: Address already in use (os error 98)")]
    );
    assert_eq!(ask(&mut connect(good)), "good");
    drop(taken);
    assert_eq!(acceptors.open(&listener("bad", address)).expect("free now"), address);
    workers.stop();
}

#[test]
fn closing_inbound_leaves_outbound_open_and_drained_queues_are_served() {
    let workers = Workers::start(1, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), echo_name);
    let inbound = Listener { direction: Direction::Inbound, ..listener("in", any_port()) };
    let outbound = Listener { direction: Direction::Outbound, ..listener("out", any_port()) };
    let address = acceptors.open(&inbound).expect("bind");
    assert!(Client::connect(address).is_err(), "bound, and not in force yet");
    // The worker is busy, so that connections stay in the kernel's queue until the socket is to be closed.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    workers.all()[0].spawn(async move {
        let _ = held.recv();
    });
    assert!(acceptors.apply(&snapshot(vec![inbound, outbound])).is_empty());
    let mut early: Vec<_> = (0..4).map(|_| connect(address)).collect();
    acceptors.close(true);
    drop(hold);
    assert!(early.iter_mut().all(|c| ask(c) == "in"), "queued connections are served");
    assert!(refused(address));
    let [(_, outbound)] = &acceptors.addresses()[..] else { panic!("one is left") };
    assert_eq!(ask(&mut connect(*outbound)), "out");
    workers.stop();
}

#[test]
fn accepted_sockets_have_no_delay() {
    let (socket, address) = bind(&listener("l", any_port())).expect("bind");
    socket.listen(1).expect("listen");
    let _client = connect(address);
    socket.set_nonblocking(false).expect("blocking");
    let (accepted, _) = socket.accept().expect("accept");
    assert!(accepted.tcp_nodelay().expect("option"), "inherited from the listening socket");
}

#[test]
fn one_connection_too_many_is_closed_at_once_and_the_others_go_on() {
    let workers = Workers::start(2, &Arc::default()).expect("threads");
    let acceptors = Acceptors::new(workers.all(), echo_name).at_most(2);
    let (one, two) = (free_address(), free_address());
    assert!(acceptors.apply(&snapshot(vec![listener("one", one), listener("two", two)])).is_empty());
    let (mut first, mut second) = (connect(one), connect(two));
    assert_eq!((ask(&mut first), ask(&mut second)), ("one".into(), "two".into()));

    // Whichever socket it comes to. Nothing is sent: what is not read would turn the close into a reset.
    let mut third = connect(one);
    assert_eq!(third.read(&mut [0; 1]).expect("an end"), 0);
    let count = |acceptors: &Acceptors| acceptors.counts()[0].2;
    assert_eq!(count(&acceptors), Count { total: 2, active: 1, refused: 1 });
    assert_eq!((ask(&mut first), ask(&mut second)), ("one".into(), "two".into()));

    // A place that is given back is taken by the next one.
    drop(second);
    let begun = std::time::Instant::now();
    loop {
        let mut next = connect(one);
        if next.write_all(b"?").is_ok() && next.read(&mut [0; 1]).is_ok_and(|read| read == 1) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "there is no room again");
    }
    workers.stop();
}
