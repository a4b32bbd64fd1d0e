//! Images of real applications for the walkthroughs: one layer of Debian packages that all share, and a few files of ours on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Recipe, archive_of, run};
use crate::cache;
use crate::part::{self, Part};

/// What all of them are made of.
const PACKAGES: [&str; 10] = [
    "apache2",
    "ca-certificates",
    "curl",
    "iproute2",
    "libapache2-mod-php",
    "mariadb-server",
    "nginx-light",
    "php-mysql",
    "redis-server",
    "wordpress",
];
/// Names of the images begin so.
pub const HUB: &str = "localhost/osier-walkthrough";
/// Our files.
const FOLDER: &str = "tests/cluster/images";

/// One image: name, files (from, to), what a container runs.
struct Application {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    entrypoint: &'static [&'static str],
}

const APPLICATIONS: [Application; 7] = [
    Application {
        name: "nginx",
        files: &[("nginx/index.html", "var/www/html/index.html")],
        entrypoint: &["nginx", "-g", "daemon off;"],
    },
    Application { name: "redis", files: &[], entrypoint: REDIS },
    Application {
        name: "redis-follower",
        files: &[],
        entrypoint: &[
            REDIS[0],
            REDIS[1],
            REDIS[2],
            REDIS[3],
            REDIS[4],
            REDIS[5],
            REDIS[6],
            "--replicaof",
            "redis-leader",
            "6379",
        ],
    },
    Application {
        name: "guestbook",
        files: &[("apache", "usr/local/bin/apache"), ("guestbook/index.php", "var/www/html/index.php")],
        entrypoint: &["/usr/local/bin/apache"],
    },
    Application {
        name: "wordpress",
        files: &[
            ("apache", "usr/local/bin/apache"),
            ("wordpress/start", "usr/local/bin/start"),
            ("wordpress/wp-config.php", "usr/local/share/wp-config.php"),
        ],
        entrypoint: &["/usr/local/bin/start"],
    },
    Application {
        name: "mariadb",
        files: &[("mariadb/start", "usr/local/bin/start")],
        entrypoint: &["/usr/local/bin/start"],
    },
    Application { name: "curl", files: &[], entrypoint: &["sleep", "infinity"] },
];
const REDIS: &[&str] = &["redis-server", "--protected-mode", "no", "--save", "", "--dir", "/tmp"];

/// One archive with all images, and their names; made of what is cached where the packages are the same.
pub fn archive(work: &Path) -> Result<(PathBuf, Vec<String>)> {
    let base = base()?;
    let root = work.join("applications");
    let _ = std::fs::remove_dir_all(&root);
    let mut images = Vec::new();
    for application in &APPLICATIONS {
        let folder = root.join(application.name);
        std::fs::create_dir_all(&folder)?;
        for (from, to) in application.files {
            let target = folder.join(to);
            std::fs::create_dir_all(target.parent().context("a file lies in a folder")?)?;
            let source = part::workspace().join(FOLDER).join(from);
            std::fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
        let entrypoint: Vec<String> = application.entrypoint.iter().map(|word| (*word).to_owned()).collect();
        images.push((format!("{HUB}/{}:1", application.name), entrypoint, folder));
    }
    let names: Vec<String> = images.iter().map(|(name, ..)| name.clone()).collect();
    let recipes: Vec<(Recipe<'_>, &Path)> = images
        .iter()
        .zip(&names)
        .map(|((_, entrypoint, folder), name)| {
            (Recipe { names: std::slice::from_ref(name), entrypoint, user: None, env: &[] }, folder.as_path())
        })
        .collect();
    let file = work.join("applications.tar");
    archive_of(&recipes, Some(&base), &file)?;
    std::fs::remove_dir_all(&root)?;
    Ok((file, names))
}

/// The layer of packages, as this machine's own distribution has them.
fn base() -> Result<PathBuf> {
    let folder = cache::entry("applications", PACKAGES.join(" ").as_bytes())?;
    let layer = folder.join("layer.tar");
    if !layer.exists() {
        part::ensure(&[Part::Debian { package: "mmdebstrap", program: "mmdebstrap" }])?;
        eprintln!("making a layer of Debian packages for the walkthroughs (1 to 2 minutes)");
        std::fs::create_dir_all(&folder)?;
        let partial = folder.join("partial.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--mode=root", "--variant=minbase", &format!("--include={}", PACKAGES.join(","))]);
        for texts in ["doc", "man", "locale", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{texts}/*"));
        }
        command.arg(suite()?).arg(&partial).args(sources());
        run(&mut command).context("the layer can't be made; it needs a mirror of Debian's")?;
        std::fs::rename(&partial, &layer)?;
    }
    cache::touch(&folder)?;
    Ok(layer)
}

/// Code name of this machine's distribution.
fn suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// Where this machine gets its packages from.
fn sources() -> Vec<PathBuf> {
    let listed = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = listed.map(|item| item.path()).collect();
    found.push("/etc/apt/sources.list".into());
    found.retain(|path| {
        path.extension().is_some_and(|e| e == "list" || e == "sources")
            && std::fs::metadata(path).is_ok_and(|m| m.len() > 0)
    });
    found
}
