//! `osier run` as a client of osier-pilot: a program joins the mesh, and leaves it without making anybody wait.

use osier_tests::process::{self, Program};

use crate::mesh::Mesh;

/// The sidecar of a program that ends has told pilot, so it ends once all is quiet, however long it would drain otherwise.
#[test]
fn a_short_program_ends_at_once() {
    let mesh = Mesh::start("http", 100);
    let port = process::free_address().port();
    let mut command = process::own("osier");
    command.args([
        "run",
        "--service",
        "brief",
        "--port",
        &port.to_string(),
        "--pilot",
        &mesh.xds.to_string(),
    ]);
    command.args(["--", "true"]).env("OSIER_DRAIN_TIME", "300s");
    let mut run = Program::start("osier-run", &mut command, mesh.folder.path());
    let status = run.wait_end();
    let output = run.output();
    assert!(status.success(), "{status}\n{output}");
    // What `osier run` says of a sidecar that it had to end.
    assert!(!output.contains("did not drain"), "{output}");
    assert!(output.contains("drained"), "{output}");
}
