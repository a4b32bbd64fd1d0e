//! What looks like TLS and is none, at every port of pilot and of sidecars: whoever sends it gets nothing, and nobody else notices.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use osier_tests::mesh::Pilot;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::identity::{STRICT, Secured};

/// The head of a TLS record.
fn record(kind: u8, length: u16) -> Vec<u8> {
    [&[kind, 3, 1][..], &length.to_be_bytes()].concat()
}

/// A handshake message within a record.
fn handshake(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
    let message = [&[kind][..], &length.to_be_bytes()[1..], body].concat();
    [record(22, message.len() as u16), message].concat()
}

fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = StdRng::seed_from_u64(5);
    let mut noise = |length: usize| (0..length).map(|_| random.random()).collect::<Vec<u8>>();
    vec![
        ("a record that never comes", record(22, 0x4000)),
        ("a record that is too long", [record(22, 0xffff), noise(0xffff)].concat()),
        ("an empty record", record(22, 0)),
        ("data before a handshake", [record(23, 16), noise(16)].concat()),
        ("an alert", [record(21, 2), vec![2, 40]].concat()),
        ("a hello that is too long", handshake(1, 0x00ff_ffff, &noise(512))),
        ("a hello of noise", handshake(1, 512, &noise(512))),
        ("a finish before the beginning", handshake(20, 32, &noise(32))),
        ("a hello of SSL 2", [&[0x80, 0x2e, 1, 0, 2][..], &noise(44)].concat()),
        ("many fragments", (0..2000).flat_map(|_| [record(22, 1), vec![1]].concat()).collect()),
        ("noise", noise(64 * 1024)),
    ]
}

/// Sends it, and reads until the other end has had enough, or a moment has passed.
fn throw(bytes: &[u8], at: SocketAddr) {
    let Ok(mut connection) = TcpStream::connect(at) else { panic!("nobody listens at {at}") };
    connection.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    // Who is refused in the middle has said enough.
    let _ = connection.write_all(bytes);
    let _ = connection.shutdown(Shutdown::Write);
    let _ = connection.read(&mut [0; 4096]);
}

/// Where a process listens, as the kernel says.
fn listening(pid: u32) -> BTreeSet<SocketAddr> {
    let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of our own");
    let inodes: BTreeSet<String> = sockets
        .flatten()
        .filter_map(|link| {
            let target = std::fs::read_link(link.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the kernel's table");
    let listens = |line: &str| {
        const LISTENS: &str = "0A";
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (ip, port) = local.split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?.swap_bytes();
        let found = *state == LISTENS && inodes.contains(*inode);
        found
            .then(|| Some(SocketAddr::new(Ipv4Addr::from(ip).into(), u16::from_str_radix(port, 16).ok()?)))?
    };
    table.lines().filter_map(listens).collect()
}

#[test]
fn garbage_at_every_port_is_nobodys_loss() {
    let secured = Secured::with("http", &[("strict.yaml", STRICT)], |_| ());
    let Secured { server, client, pilot, .. } = &secured;
    let ports: Vec<(&str, IpAddr, u32, usize)> = vec![
        ("pilot", pilot.xds.ip(), pilot.pid(), 3),
        ("the server's sidecar", server.registration.address, server.program.pid(), 4),
        ("the client's sidecar", client.registration.address, client.program.pid(), 3),
    ];
    let garbage = garbage();
    for (whose, ip, pid, least) in &ports {
        let addresses = listening(*pid);
        assert!(addresses.len() >= *least, "{whose} listens at {addresses:?}");
        for mut address in addresses {
            if address.ip().is_unspecified() {
                address.set_ip(*ip);
            }
            garbage.iter().for_each(|(_, bytes)| throw(bytes, address));
        }
    }
    assert_eq!(secured.client.ask(&secured.host()), "web");
    for (whose, _, pid, _) in ports {
        assert!(std::fs::exists(format!("/proc/{pid}/exe")).is_ok_and(|there| there), "{whose} has ended");
    }
    assert_eq!(pilot.get("/ready").status(), 200);
    still_signs(pilot);
}

/// A sidecar that comes now gets a certificate, or it would not become ready.
fn still_signs(pilot: &Pilot) {
    osier_tests::mesh::Sidecar::secured(pilot, "late", None);
}
