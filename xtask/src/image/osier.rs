//! Osier's own images: `osier/pilot`, `osier/proxy` and `osier/cli`, slim (our program, its libraries, nothing else but what captures traffic),
//! for a user that isn't root and a root file system that is only read.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Recipe, Root, archive, workload};
use crate::part::{self, Part};
use crate::run;

/// Who runs our programs: what Istio calls its proxy's user, which captured traffic is told apart by.
const USER: &str = "1337:1337";
/// Who runs `osier` in a pod: an application like others, whose traffic is captured.
const APPLICATION: &str = "65532:65532";

/// What captures traffic, and where it comes from.
const CAPTURE: [Part; 3] = [
    Part::Debian { package: "nftables", program: "nft" },
    Part::Debian { package: "iptables", program: "iptables-restore" },
    Part::Debian { package: "binutils", program: "strip" },
];

/// Which images, and from what.
#[derive(Args)]
pub struct Build {
    /// Build profile of the programs.
    #[arg(long, default_value = "release", value_parser = ["release", "dev"])]
    profile: String,
    /// What the images' names begin with. [default: osier; localhost/osier-walkthrough for applications]
    #[arg(long)]
    hub: Option<String>,
    /// Their tag. [default: the version of the workspace]
    #[arg(long)]
    tag: Option<String>,
    /// Folder to write proxy.tar, pilot.tar and cli.tar to; `docker load` and `ctr images import` read them.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
    /// Make the images of applications that the walkthroughs run instead, all in one file: applications.tar.
    #[arg(long, conflicts_with_all = ["profile", "tag"])]
    applications: bool,
}

/// Builds the images and says what they are called.
pub fn build(build: &Build) -> Result<()> {
    if build.applications {
        let (archive, names) = workload::archive(&build.output, build.hub.as_deref())?;
        names.iter().for_each(|name| println!("{name}  {}", archive.display()));
        return Ok(());
    }
    for image in archives(build)? {
        println!("{}  {}", image.name, image.archive.display());
    }
    Ok(())
}

/// An image in a file.
pub struct Image {
    /// Its name with tag.
    pub name: String,
    /// The archive.
    pub archive: PathBuf,
}

impl Build {
    /// As tests want them: quickly built, under the names that an installation takes by default.
    pub fn for_tests(profile: &str, output: PathBuf) -> Self {
        Self { profile: profile.into(), hub: None, tag: None, output, applications: false }
    }
}

/// Builds the programs and the archives.
pub fn archives(build: &Build) -> Result<[Image; 3]> {
    part::ensure(&CAPTURE)?;
    let programs = programs(&build.profile)?;
    std::fs::create_dir_all(&build.output)
        .with_context(|| format!("cannot make {}", build.output.display()))?;
    let tag = build.tag.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let image = |name: &str, fill: &dyn Fn(&Root) -> Result<()>| {
        let root = Root::new(build.output.join(format!("{name}-root")))?;
        let program = if name == "cli" { "osier".to_owned() } else { format!("osier-{name}") };
        let path = format!("/usr/local/bin/{program}");
        root.own_program(&programs.join(&program), &path)?;
        root.file("/etc/passwd", "root:x:0:0::/:/nonexistent\nosier:x:1337:1337::/:/nonexistent\nnonroot:x:65532:65532::/:/nonexistent\n")?;
        root.file("/etc/group", "root:x:0:\nosier:x:1337:\nnonroot:x:65532:\n")?;
        root.folder("/tmp")?;
        fill(&root)?;
        let full = format!("{}/{name}:{tag}", build.hub.as_deref().unwrap_or("osier"));
        let file = build.output.join(format!("{name}.tar"));
        let recipe = Recipe {
            names: std::slice::from_ref(&full),
            entrypoint: &[path],
            user: Some(if name == "cli" { APPLICATION } else { USER }),
            env: &[],
            stop_signal: None,
        };
        archive(&recipe, root.path(), &file)?;
        Ok::<_, anyhow::Error>(Image { name: full, archive: file })
    };
    Ok([image("proxy", &capture_tools)?, image("pilot", &certificates)?, image("cli", &certificates)?])
}

/// nft, and iptables with its modules, both kinds.
fn capture_tools(root: &Root) -> Result<()> {
    let find = |name: &str| part::find_program(name).with_context(|| format!("there is no {name}"));
    root.program(&find("nft")?)?;
    for kind in ["nft", "legacy"] {
        for tool in ["iptables", "iptables-restore", "iptables-save", "ip6tables-restore", "ip6tables-save"] {
            let (family, action) = tool.split_once("tables").context("a tool of iptables")?;
            root.program(&find(&format!("{family}tables-{kind}{action}"))?)?;
        }
    }
    for library in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables"] {
        for module in std::fs::read_dir(library).into_iter().flatten().flatten() {
            root.copy(&module.path())?;
        }
    }
    certificates(root)
}

/// Roots of the public web, for whoever is asked over TLS outside of the mesh.
fn certificates(root: &Root) -> Result<()> {
    let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if bundle.is_file() { root.copy(bundle) } else { Ok(()) }
}

/// Builds the programs; the folder that they are in.
fn programs(profile: &str) -> Result<PathBuf> {
    eprintln!("building osier-proxy and osier-pilot ({profile})");
    // The whole workspace at once: a package alone would be built with other features of its dependencies.
    let arguments = ["build", "--quiet", "--locked", "--workspace", "--bins", "--profile", profile];
    let done = Command::new(run::cargo()).args(arguments).current_dir(part::workspace()).status();
    if !done.context("cannot start cargo")?.success() {
        bail!("the programs do not build");
    }
    Ok(run::target_folder()?.join(if profile == "dev" { "debug" } else { profile }))
}
