//! Crashes and restarts of either half, under load.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use osier_tests::wait;

use crate::load::Load;
use crate::web::{Web, rules};

/// How long a workload may stay registered after its sidecar is gone: pilot's grace, and some time to notice.
const GRACE: Duration = Duration::from_secs(12);

#[test]
fn pilot_is_killed_and_comes_back_and_no_request_fails() {
    let mut web = Web::start(&[], &[]);
    let load = Load::start(web.client.proxy(), &web.host(), Load::status_200);
    for version in ["v2", "v1"] {
        web.pilot.kill();
        load.wait_for(200);
        // What is edited while nobody looks is in force after the restart.
        web.pilot.save("rules.yaml", &rules(version));
        web.pilot.restart();
        web.wait_for(version);
        assert_eq!(web.endpoints().len(), 2, "nobody had to leave");
    }
    // All three come back, and stay registered when the grace of those who would not have come back is over.
    let clients = || web.pilot.page("/debug/syncz").as_array().map_or(0, Vec::len);
    wait::until("all proxies are back", || (clients() == 3).then_some(()));
    let begun = Instant::now();
    wait::until("the grace is over", || {
        assert_eq!(web.endpoints().len(), 2, "a workload that came back stays");
        (begun.elapsed() > GRACE).then_some(())
    });
    let (succeeded, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {succeeded}: {failures:#?}", failures.len());
}

/// Its peers lose at most what was on its way, find the other endpoint at once, and pilot forgets it when the grace is over.
#[test]
fn a_killed_sidecar_is_left_out_and_forgotten() {
    let mut web = Web::start(&[], &[]);
    web.pilot.remove("rules.yaml");
    wait::until("both versions answer", || web.is_balanced(web.port).then_some(()));
    let load = Load::start(web.client.proxy(), &web.host(), Load::status_200);
    let killed = Instant::now();
    web.servers[0].program.signal(Signal::SIGKILL);
    web.servers[0].program.wait_end();
    load.wait_for(20);
    let lost = load.failures();
    // Each client has one request on its way.
    assert!(lost.len() <= 4, "{lost:#?}");
    load.wait_for(400);
    assert_eq!(load.failures(), lost, "peers move on");
    assert_eq!(web.endpoints().len(), 2, "a broken stream is no farewell: its proxy may come back");
    wait::until("pilot forgets it", || (web.endpoints().len() == 1).then_some(()));
    assert!(killed.elapsed() < GRACE * 2, "{:?}", killed.elapsed());
    let (_, failures) = load.stop();
    assert_eq!(failures, lost);

    // Another one takes its place.
    web.servers[0] = crate::web::server(&web.pilot, "v1");
    wait::until("both versions answer again", || web.is_balanced(web.port).then_some(()));
}

/// A sidecar that is told to end takes its workload out first: nobody notices.
#[test]
fn a_sidecar_that_ends_politely_costs_no_request() {
    let mut web = Web::start(&[], &[]);
    web.pilot.remove("rules.yaml");
    let load = Load::start(web.client.proxy(), &web.host(), Load::status_200);
    load.wait_for(50);
    web.servers[0].program.signal(Signal::SIGTERM);
    wait::until("it is out", || (web.endpoints().len() == 1).then_some(()));
    let status = web.servers[0].program.wait_end();
    assert!(status.success(), "{status}");
    load.wait_for(100);
    web.servers[0] = crate::web::server(&web.pilot, "v1");
    wait::until("it is in again", || (web.endpoints().len() == 2).then_some(()));
    load.wait_for(100);
    let (succeeded, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {succeeded}: {failures:#?}", failures.len());
}
