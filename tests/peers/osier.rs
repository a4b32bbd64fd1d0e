//! osier-proxy on a stock Envoy bootstrap, as a client of osier-pilot that subscribes to everything.

use std::sync::atomic::{AtomicBool, Ordering};

use osier_tests::wait;

use crate::client::{Client, backends, follows_the_split};
use crate::mesh::Mesh;

/// The split, an edit of it, and a restart of pilot under traffic after which edits are in force again.
fn serves(api: &str, last: u8) {
    let mut mesh = Mesh::start("http", 75);
    let _backends = backends(&mesh);
    let client = Client::osier(&mesh, api, last);
    follows_the_split(&mesh, &client);

    let host = format!("echo.default.svc.cluster.local:{}", mesh.port);
    let (done, asked) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut other = Vec::new();
            while !done.load(Ordering::Relaxed) {
                other.extend(Some(client.ask(&host)).filter(|answer| answer != "v2"));
                asked.fetch_add(1, Ordering::Relaxed);
            }
            other
        });
        mesh.stop_pilot();
        let before = asked.load(Ordering::Relaxed);
        wait::until("traffic goes on without pilot", || {
            (asked.load(Ordering::Relaxed) > before + 50).then_some(())
        });
        mesh.start_pilot();
        wait::until("the client is back", || {
            mesh.get("/debug/syncz").1.contains("client.default").then_some(())
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(traffic.join().expect("it counts only"), Vec::<String>::new());
    });
    mesh.set_split(100);
    wait::until("the edit is in force", || (0..20).all(|_| client.ask(&host) == "v1").then_some(()));
    client.assert_nothing_rejected();
    mesh.assert_nothing_refused();
}

#[test]
fn osier_proxy_serves_in_state_of_the_world() {
    serves("GRPC", 5);
}

#[test]
fn osier_proxy_serves_in_delta() {
    serves("DELTA_GRPC", 6);
}
