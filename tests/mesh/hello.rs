//! What a PERMISSIVE port makes of a ClientHello: mutual TLS where it offers the mesh's word (`istio`), else bytes like any others.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use osier_pilot::ca::local::Local;
use osier_tests::backend::Backend;
use osier_tests::mesh::{IDENTITY, Pilot, Sidecar, service};
use osier_tests::{process, wait};
use parking_lot::Mutex;

use crate::identity::{MESH, Shown, ask, shown};

/// A service `web` behind a sidecar, and a certificate of the mesh.
struct Port {
    inbound: SocketAddr,
    good: Shown,
    folder: PathBuf,
    _server: Sidecar,
    _pilot: Pilot,
}

impl Port {
    fn start(name: &str, application: SocketAddr) -> Self {
        let port = process::free_address().port();
        let pilot = Pilot::with_identity(&[("service.yaml", &service("web", name, port))], |_| ());
        let server = Sidecar::secured(&pilot, "web", Some(application));
        let folder = pilot.path().to_path_buf();
        let authority = Local::open(&folder.join(IDENTITY)).and_then(|local| local.authority());
        let authority = authority.expect("the authority");
        let good = shown(&folder, "good", &authority, "spiffe://cluster.local/ns/other/sa/caller");
        let inbound = SocketAddr::new(server.registration.address, port);
        wait::until("the port is open", || TcpStream::connect(inbound).ok());
        Self { inbound, good, folder, _server: server, _pilot: pilot }
    }

    fn ask(&self, shows: bool, protocols: &str) -> String {
        ask(self.inbound, shows.then_some(&self.good), protocols, &self.folder)
    }
}

#[test]
fn an_http_port_takes_mutual_tls_of_the_mesh_and_no_other() {
    let backend = Backend::start("web");
    let port = Port::start("http", backend.address);
    wait::until("the mesh's word is known", || {
        port.ask(true, MESH).starts_with("HTTP/1.1 200").then_some(())
    });
    let before = backend.requests.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(port.ask(true, "h2"), "", "TLS of anybody's is no HTTP");
    assert_eq!(backend.requests.load(std::sync::atomic::Ordering::Relaxed), before);
}

#[test]
fn a_tcp_port_hands_on_tls_that_is_not_the_meshs() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    let application = listener.local_addr().expect("a bound socket has an address");
    let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = received.clone();
    // Ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut piece = vec![0; 512];
            let length = stream.read(&mut piece).unwrap_or_default();
            piece.truncate(length);
            if length > 0 {
                seen.lock().push(piece);
            }
        }
    });
    let port = Port::start("tcp", application);
    port.ask(true, "h2");
    let hello = wait::until("the application gets the ClientHello", || received.lock().pop());
    assert!(hello.starts_with(&[0x16, 3]) && hello.windows(2).any(|two| two == b"h2"), "{hello:?}");
    port.ask(true, MESH);
    let request = wait::until("the application gets what was encrypted", || received.lock().pop());
    assert!(request.starts_with(b"GET / HTTP/1.1"), "{request:?}");
    // Who says that it is of the mesh must prove it.
    port.ask(false, "istio");
    assert_eq!(*received.lock(), Vec::<Vec<u8>>::new());
}
