//! nginx as a backend of tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Program;

/// Starts one that listens on `address`, as these lines of its server say, with a place for its files in `folder`.
pub fn start(folder: &Path, address: SocketAddr, server: &str) -> Program {
    let place = folder.join("nginx");
    std::fs::create_dir(&place).expect("the test's folder can be written");
    // Debian puts nginx where a user's PATH does not always lead.
    let mut command = Command::new("/usr/sbin/nginx");
    command.args(["-e", "stderr", "-c"]).arg(configure(&place, server));
    let mut program = Program::start("nginx", &mut command, folder);
    program.wait_listening(address);
    program
}

/// Writes a configuration into `folder`, which nginx uses alone: one server, with these lines, in one process, so that its end is
/// the end of all of it. Gives the file, for `nginx -e stderr -c FILE`.
pub fn configure(folder: &Path, server: &str) -> PathBuf {
    let at = folder.display();
    let configuration = format!(
        "daemon off;
master_process off;
pid {at}/pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {at}/body;
  proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi;
  scgi_temp_path {at}/scgi;
  server {{
    {server}
  }}
}}
"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).expect("the test's folder can be written");
    file
}
