//! What the cluster is made of: Debian packages, Go programs built from modules of our own, one program in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::place::Place;
use crate::cache;
use crate::part::{self, GoProgram, Part, go_program};
use crate::run::run;

/// Programs of Debian's.
const PACKAGES: [Part; 10] = [
    Part::Debian { package: "containerd", program: "containerd" },
    Part::Debian { package: "runc", program: "runc" },
    Part::Debian { package: "containernetworking-plugins", program: "/usr/lib/cni/bridge" },
    Part::Debian { package: "iptables", program: "iptables" },
    Part::Debian { package: "nftables", program: "nft" },
    Part::Debian { package: "conntrack", program: "conntrack" },
    Part::Debian { package: "ethtool", program: "ethtool" },
    Part::Debian { package: "iproute2", program: "ip" },
    Part::Debian { package: "openssl", program: "openssl" },
    Part::Debian { package: "build-essential", program: "cc" },
];

/// Names under which the one program of Kubernetes is started.
const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// What was built.
pub struct Programs {
    kubernetes: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// Changes with what CoreDNS was built from.
    pub coredns_tag: String,
    /// Holds a pod's namespaces.
    pub pause: PathBuf,
}

impl Programs {
    /// Installs and builds what isn't there.
    pub fn ensure() -> Result<Self> {
        part::ensure(&PACKAGES)?;
        let program = |name: &str, cost: &str, stamps: &[String]| {
            let module = format!("tests/cluster/go/{name}");
            go_program(&GoProgram { name, module: &module, package: ".", stamps, cost })
        };
        let etcd = program("etcd", "about a minute", &[])?;
        let coredns = program("coredns", "about 2 minutes", &[])?;
        let kubernetes = program("kubernetes", "8 to 15 minutes", &stamps()?)?;
        let entry = coredns.parent().and_then(Path::file_name).context("an entry has a name")?;
        let coredns_tag = entry.to_string_lossy().into_owned();
        Ok(Self { kubernetes, etcd, coredns, coredns_tag, pause: pause()? })
    }

    /// Makes the names by which the components are started.
    pub fn link(&self, place: &Place) -> Result<()> {
        std::fs::create_dir_all(place.path("bin"))?;
        for name in COMPONENTS {
            let link = place.program(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(&self.kubernetes, &link)?;
        }
        Ok(())
    }
}

/// What the release process would stamp: without it, all components say v0.0.0-master. The version is the one that go.mod requires.
fn stamps() -> Result<Vec<String>> {
    let file = part::workspace().join("tests/cluster/go/kubernetes/go.mod");
    let module = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let version = module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    let version = version.context("go.mod requires no Kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) =
        (numbers.next().context("a version has numbers")?, numbers.next().context("a version has numbers")?);
    // The first is what the components report, the second what they call themselves towards the API server.
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    Ok(packages
        .iter()
        .flat_map(|package| {
            [
                format!("{package}.gitVersion={version}"),
                format!("{package}.gitMajor={major}"),
                format!("{package}.gitMinor={minor}"),
                format!("{package}.gitTreeState=clean"),
                format!("{package}.gitCommit=0000000"),
                format!("{package}.buildDate=2026-01-01T00:00:00Z"),
            ]
        })
        .collect())
}

/// The pause program, static, as its image holds nothing else.
fn pause() -> Result<PathBuf> {
    let source = part::workspace().join("tests/cluster/pause/pause.c");
    let content = std::fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let folder = cache::entry("pause", &content)?;
    let program = folder.join("pause");
    if !program.exists() {
        std::fs::create_dir_all(&folder)?;
        run(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(&program).arg(&source))?;
    }
    cache::touch(&folder)?;
    Ok(program)
}
