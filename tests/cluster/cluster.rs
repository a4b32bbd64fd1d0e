//! The cluster that checks run on: one of our own, through `cargo xtask cluster`, or a user's (`OSIER_TEST_KUBECONFIG`).

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use osier_tests::{process, wait};
use serde_json::Value;

/// How long the whole cluster may take for something: pods start and images are read on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster that is up.
pub struct Cluster {
    /// kubectl, which knows its way.
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// It is ours, and ends with the suite.
    own: bool,
    /// Where images come from, instead of this machine.
    hub: Option<String>,
}

impl Cluster {
    /// A user's cluster, where one is named.
    pub fn of_user() -> Option<Self> {
        let kubeconfig = std::env::var_os("OSIER_TEST_KUBECONFIG")?;
        let hub = std::env::var("OSIER_TEST_HUB").ok();
        Some(Self { kubectl: "kubectl".into(), kubeconfig: kubeconfig.into(), own: false, hub })
    }

    /// Starts one of our own.
    pub fn up(proxy_mode: &str) -> Self {
        let status = run(process::own("xtask").args(["cluster", "status"]));
        assert!(!status.status.success(), "a cluster is up; end it first: cargo xtask cluster down");
        // From here on it ends with us, however far it comes.
        let mut cluster = Self { kubectl: PathBuf::new(), kubeconfig: PathBuf::new(), own: true, hub: None };
        let said = cluster.xtask(&["up", "--kube-proxy", proxy_mode]);
        let path = said.lines().find_map(|line| line.strip_prefix("kubeconfig: "));
        cluster.kubeconfig = path.expect("up says where the kubeconfig is").into();
        let folder = cluster.kubeconfig.ancestors().nth(2).expect("it lies two folders below the cluster's");
        cluster.kubectl = folder.join("bin/kubectl");
        cluster
    }

    /// True where everything of it may be stopped and started.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// Folder of a cluster of our own.
    pub fn folder(&self) -> PathBuf {
        self.kubeconfig.ancestors().nth(2).map(PathBuf::from).unwrap_or_default()
    }

    /// Where images of the mesh and of its tests come from.
    pub fn hub<'h>(&'h self, default: &'h str) -> &'h str {
        self.hub.as_deref().unwrap_or(default)
    }

    /// The same where it isn't this machine.
    pub fn own_hub(&self) -> Option<&str> {
        self.hub.as_deref()
    }

    /// How to reach it.
    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// Ends it.
    pub fn down(self) {
        drop(self);
    }

    /// `cargo xtask cluster …`; what it prints.
    pub fn xtask(&self, arguments: &[&str]) -> String {
        let done = run(process::own("xtask").arg("cluster").args(arguments));
        succeeded(&format!("cluster {}", arguments.join(" ")), done)
    }

    /// kubectl; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.try_kubectl(arguments))
    }

    /// kubectl, where it may fail.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        run(self.command(&self.kubectl).args(arguments))
    }

    /// kubectl that reads `input`.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(&self.kubectl);
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child.stdin.take().expect("kubectl reads").write_all(input.as_bytes()).expect("kubectl reads");
        child.wait_with_output().expect("kubectl ends")
    }

    /// What the API server has, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// osier; what it prints.
    pub fn osier(&self, arguments: &[&str]) -> String {
        succeeded(&format!("osier {}", arguments.join(" ")), self.try_osier(arguments))
    }

    /// osier, where it may fail.
    pub fn try_osier(&self, arguments: &[&str]) -> Output {
        run(self.command(process::own("osier").get_program()).args(arguments))
    }

    /// kubectl itself.
    pub fn kubectl_program(&self) -> &std::path::Path {
        &self.kubectl
    }

    /// A program that finds the cluster.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        if self.own {
            command.env("KUBECACHEDIR", self.folder().join("kubectl-cache"));
            let path = std::env::var_os("PATH").unwrap_or_default();
            let ours = [self.folder().join("bin")];
            let all = ours.into_iter().chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(all).expect("a path has no colon"));
        }
        command
    }

    /// A namespace that is gone when this is dropped; labelled for injection where that is wanted.
    pub fn namespace<'c>(&'c self, name: &'static str, injected: bool) -> Namespace<'c> {
        self.kubectl(&["create", "namespace", name]);
        if injected {
            self.kubectl(&["label", "namespace", name, "istio-injection=enabled"]);
        }
        Namespace { cluster: self, name }
    }

    /// Has the control plane's pods replaced, and waits for nothing.
    pub fn replace_pilot(&self) {
        self.kubectl(&["--namespace=osier-system", "rollout", "restart", "deployment/osier-pilot"]);
    }

    /// Waits for the control plane to be as it shall be.
    pub fn pilot_rolled_out(&self) {
        self.kubectl(&[
            "--namespace=osier-system",
            "rollout",
            "status",
            "deployment/osier-pilot",
            "--timeout=120s",
        ]);
    }

    /// Waits until something holds that a cluster needs time for.
    pub fn until<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        wait::until_within(PATIENCE, what, probe)
    }

    /// All nftables rules of the machine.
    pub fn rules(&self) -> String {
        succeeded("nft list ruleset", run(Command::new("nft").args(["list", "ruleset"])))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.own {
            return;
        }
        let done = run(process::own("xtask").args(["cluster", "down"]));
        assert!(
            done.status.success() || std::thread::panicking(),
            "down: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

/// A namespace of one check.
pub struct Namespace<'c> {
    /// The cluster.
    pub cluster: &'c Cluster,
    /// Its name.
    pub name: &'static str,
}

impl Namespace<'_> {
    /// kubectl in it; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["--namespace", self.name], arguments].concat())
    }

    /// kubectl in it, where it may fail.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.cluster.try_kubectl(&[&["--namespace", self.name], arguments].concat())
    }

    /// kubectl in it, reading `input`.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Output {
        self.cluster.feed(&[&["--namespace", self.name], arguments].concat(), input)
    }

    /// Applies manifests in it.
    pub fn apply(&self, manifests: &str) {
        succeeded("kubectl apply", self.feed(&["apply", "--filename=-"], manifests));
    }

    /// What the API server has in it, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        self.cluster.get(&[&["--namespace", self.name], arguments].concat())
    }

    /// The metrics of a pod's sidecar; empty where it can't be asked.
    pub fn proxy_metrics(&self, pod: &str) -> String {
        self.proxy_page(pod, "stats/prometheus")
    }

    /// A page of the admin interface of a pod's sidecar; empty where it can't be asked.
    pub fn proxy_page(&self, pod: &str, path: &str) -> String {
        let ask = ["osier-proxy", "request", "GET", path];
        let said = self.try_kubectl(&[&["exec", pod, "-c", "istio-proxy", "--"], &ask[..]].concat());
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// Waits for a Deployment to be as it shall be.
    pub fn rolled_out(&self, deployment: &str) {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=120s"]);
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in [&["get", "pods", "-o", "wide"][..], &["describe", "pods"], &["get", "events"]] {
                let said = self.try_kubectl(what);
                eprintln!("{}", String::from_utf8_lossy(&said.stdout));
            }
        }
        // Its end is not waited for: the next check makes another.
        let _ = self.cluster.try_kubectl(&["delete", "namespace", self.name, "--wait=false"]);
    }
}

/// Runs a command; what the cluster says about its steps is shown.
fn run(command: &mut Command) -> Output {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
    if command.get_args().any(|word| word == "up" || word == "down") {
        print!("{}", String::from_utf8_lossy(&done.stderr));
    }
    done
}

/// What a command printed that must not fail.
pub fn succeeded(what: &str, done: Output) -> String {
    assert!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
