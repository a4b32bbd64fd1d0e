//! Images of real applications for the walkthroughs: one layer of Debian packages that all share, and a few files of ours on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Recipe, archive_of};
use crate::cache;
use crate::part::{self, Part};
use crate::run::run;

/// What all of them are made of.
const PACKAGES: [&str; 11] = [
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
    "wordpress-theme-twentytwentythree",
];
/// Names of the images begin so where nothing else is said, and in the walkthroughs.
const HUB: &str = "localhost/osier-walkthrough";
/// Our files.
const FOLDER: &str = "tests/cluster/images";

/// One image: name, files (from, to), what a container runs, and the signal on which that ends when its requests have, as in
/// the application's official image.
struct Application {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    entrypoint: &'static [&'static str],
    stop_signal: Option<&'static str>,
}

const APPLICATIONS: [Application; 7] = [
    Application {
        name: "nginx",
        files: &[
            ("nginx/nginx.conf", "etc/nginx/nginx.conf"),
            ("nginx/default.conf", "etc/nginx/conf.d/default.conf"),
            ("nginx/index.html", "usr/share/nginx/html/index.html"),
        ],
        entrypoint: &["nginx", "-g", "daemon off;"],
        stop_signal: Some("SIGQUIT"),
    },
    Application { name: "redis", files: REDIS, entrypoint: &["redis-server"], stop_signal: None },
    Application {
        name: "redis-follower",
        files: REDIS,
        entrypoint: &["redis-server", "--replicaof", "redis-leader", "6379"],
        stop_signal: None,
    },
    Application {
        name: "guestbook",
        files: &[("apache", "usr/local/bin/apache"), ("guestbook/index.php", "var/www/html/index.php")],
        entrypoint: &["/usr/local/bin/apache"],
        stop_signal: APACHE_STOPS,
    },
    Application {
        name: "wordpress",
        files: &[
            ("apache", "usr/local/bin/apache"),
            ("wordpress/start", "usr/local/bin/start"),
            ("wordpress/wp-config.php", "usr/local/share/wp-config.php"),
        ],
        entrypoint: &["/usr/local/bin/start"],
        stop_signal: APACHE_STOPS,
    },
    Application {
        name: "mariadb",
        files: &[("mariadb/start", "usr/local/bin/start")],
        entrypoint: &["/usr/local/bin/start"],
        stop_signal: None,
    },
    // With a signal that ends the first process of a container, which TERM doesn't when it handles none.
    Application {
        name: "curl",
        files: &[],
        entrypoint: &["sleep", "infinity"],
        stop_signal: Some("SIGKILL"),
    },
];
const REDIS: &[(&str, &str)] = &[("redis/redis-server", "usr/local/bin/redis-server")];
const APACHE_STOPS: Option<&str> = Some("SIGWINCH");

/// One archive with all images, and their names, which begin with `hub`; made of what is cached where the packages are the same.
pub fn archive(work: &Path, hub: Option<&str>) -> Result<(PathBuf, Vec<String>)> {
    let hub = hub.unwrap_or(HUB);
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
        images.push((format!("{hub}/{}:1", application.name), entrypoint, application.stop_signal, folder));
    }
    let names: Vec<String> = images.iter().map(|(name, ..)| name.clone()).collect();
    let recipes: Vec<(Recipe<'_>, &Path)> = images
        .iter()
        .zip(&names)
        .map(|((_, entrypoint, stop_signal, folder), name)| {
            let names = std::slice::from_ref(name);
            let recipe = Recipe { names, entrypoint, user: None, env: &[], stop_signal: *stop_signal };
            (recipe, folder.as_path())
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
