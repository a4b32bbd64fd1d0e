//! nginx in two versions, `curl` in front of it.

use std::path::Path;

use osier_tests::nginx;
use osier_tests::process::{self, Program};

use crate::mesh::{Mesh, big};

/// nginx in one process, so that its end is the end of all of it.
fn nginx(mesh: &Mesh, name: &str) -> Program {
    let address = process::free_address();
    let folder = mesh.path().join(format!("nginx-{name}"));
    std::fs::create_dir(&folder).expect("the test's folder can be written");
    let server = format!(
        "listen {address};
    location = /who {{ return 200 \"{name}\\n\"; }}
    location = /big {{ root {}; }}
    location = /peer {{ return 200 \"$http_host $remote_addr $server_protocol\\n\"; }}",
        mesh.path().display()
    );
    let file = nginx::configure(&folder, &server);
    let file = file.display().to_string();
    let program = nginx_program();
    mesh.serve(name, "web", address, &[&program, "-e", "stderr", "-c", &file])
}

/// Debian puts nginx where a user's PATH does not always lead.
fn nginx_program() -> String {
    let own = "/usr/sbin/nginx";
    if Path::new(own).is_file() { own.to_owned() } else { "nginx".to_owned() }
}

#[test]
fn nginx_behind_sidecars() {
    let mesh = Mesh::start("web", "http", 8080);
    let servers = vec![nginx(&mesh, "one"), nginx(&mesh, "two")];

    let who = mesh.visit(&[], "curl -sS -f 'http://web:8080/who?[1-200]'");
    let count = |name: &str| who.lines().filter(|line| *line == name).count();
    assert_eq!(count("one") + count("two"), 200, "{who}");
    assert!(count("one") > 40 && count("two") > 40, "one {} two {}", count("one"), count("two"));

    let web = "http://web.default.svc.cluster.local:8080";
    assert!(mesh.visit(&[], &format!("curl -sS -f {web}/big")) == big(), "a large file arrives as it is");
    let script = format!(
        "curl -sS -f {web}/peer
         curl -sS -r 7-13 -w '%{{http_code}}\\n' {web}/big
         tag=$(curl -sS -f -I {web}/big | tr -d '\\r' | sed -n 's/^[eE][tT]ag: //p')
         curl -sS -o rest -w '%{{http_code}} %{{size_download}}\\n' -H \"if-none-match: $tag\" {web}/big
         curl -sS -o rest -w '%{{http_code}}\\n' {web}/absent"
    );
    assert_eq!(
        mesh.visit(&[], &script),
        "web.default.svc.cluster.local:8080 127.0.0.1 HTTP/1.1\nline 1\n206\n304 0\n404\n"
    );
    mesh.stop(servers);
}
