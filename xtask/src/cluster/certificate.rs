//! Keys, certificates and kubeconfigs: one authority for the cluster, one for the API server's front proxy.
//!
//! Made by openssl once for each life of a cluster: `down` removes them, and no key leaves the state folder.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::place::{API_SERVICE, DOMAIN, NODE, NODE_ADDRESS, Place};

/// Clients of the API server: file name, then subject.
const CLIENTS: [(&str, &str); 4] = [
    ("admin", "/O=system:masters/CN=admin"),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
    ("kube-proxy", "/CN=system:kube-proxy"),
];

/// Makes all that isn't there yet.
pub fn issue(place: &Place) -> Result<()> {
    if place.path("pki/complete").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(place.path("pki"))?;
    // openssl's own settings would add extensions of theirs.
    place.write("pki/openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n")?;
    let authority = Authority::new(place, "ca")?;
    let front_proxy = Authority::new(place, "front-proxy-ca")?;
    let names = format!(
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.{DOMAIN},\
         DNS:localhost,IP:127.0.0.1,IP:{NODE_ADDRESS},IP:{API_SERVICE}"
    );
    authority.server("apiserver", "/CN=kube-apiserver", &names)?;
    authority.client("apiserver-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")?;
    front_proxy.client("front-proxy-client", "/CN=front-proxy-client")?;
    let node = format!("/O=system:nodes/CN=system:node:{NODE}");
    let names = format!("DNS:{NODE},IP:{NODE_ADDRESS},IP:127.0.0.1");
    authority.server("kubelet-server", &node, &names)?;
    for (name, subject) in CLIENTS.into_iter().chain([("kubelet", node.as_str())]) {
        authority.client(name, subject)?;
        place.write(&format!("pki/{name}.kubeconfig"), &kubeconfig(place, name))?;
    }
    let (key, public) = (place.path("pki/service-account.key"), place.path("pki/service-account.pub"));
    openssl(Command::new("openssl").args(["genpkey", "-algorithm", "EC"]).args(CURVE).arg("-out").arg(&key))?;
    openssl(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(public))?;
    place.write("pki/complete", "")
}

const CURVE: [&str; 2] = ["-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// Something that signs.
struct Authority<'a> {
    place: &'a Place,
    name: &'static str,
}

impl<'a> Authority<'a> {
    fn new(place: &'a Place, name: &'static str) -> Result<Self> {
        let extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
        let mut command = request(place, name, &format!("/CN=osier-cluster-{name}"), &extensions);
        openssl(&mut command)?;
        Ok(Self { place, name })
    }

    fn server(&self, name: &str, subject: &str, alternatives: &str) -> Result<()> {
        self.sign(name, subject, &["extendedKeyUsage=serverAuth", &format!("subjectAltName={alternatives}")])
    }

    fn client(&self, name: &str, subject: &str) -> Result<()> {
        self.sign(name, subject, &["extendedKeyUsage=clientAuth"])
    }

    fn sign(&self, name: &str, subject: &str, extensions: &[&str]) -> Result<()> {
        let basic = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"];
        let mut command = request(self.place, name, subject, &[&basic, extensions].concat());
        command.arg("-CA").arg(self.place.path(&format!("pki/{}.crt", self.name)));
        command.arg("-CAkey").arg(self.place.path(&format!("pki/{}.key", self.name)));
        openssl(&mut command)
    }
}

/// A new key and a certificate for it.
fn request(place: &Place, name: &str, subject: &str, extensions: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-days", "365", "-newkey", "ec"]).args(CURVE);
    command.args(["-subj", subject, "-config"]).arg(place.path("pki/openssl.cnf"));
    command.arg("-keyout").arg(place.path(&format!("pki/{name}.key")));
    command.arg("-out").arg(place.path(&format!("pki/{name}.crt")));
    extensions.iter().for_each(|extension| {
        command.args(["-addext", extension]);
    });
    command
}

fn openssl(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().context("cannot start openssl")?;
    if !done.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

fn kubeconfig(place: &Place, user: &str) -> String {
    let file = |name: &str| Path::display(&place.path(&format!("pki/{name}"))).to_string();
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: osier
  cluster: {{server: 'https://{NODE_ADDRESS}:6443', certificate-authority: '{}'}}
users:
- name: {user}
  user: {{client-certificate: '{}', client-key: '{}'}}
contexts:
- name: osier
  context: {{cluster: osier, user: {user}}}
current-context: osier
",
        file("ca.crt"),
        file(&format!("{user}.crt")),
        file(&format!("{user}.key")),
    )
}
