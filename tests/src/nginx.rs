//! nginx as a backend of tests.

use std::path::{Path, PathBuf};

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
