//! Images: made from folders, imported into containerd, never pulled.
//!
//! An archive as `docker save` writes it: one layer, a configuration, a manifest that names both.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::place::Place;
use super::program::Programs;
use super::{machine, node};

/// The image of the process that holds a pod's namespaces. Its source doesn't change; if it does, so must the tag.
pub const PAUSE: &str = "localhost/osier-cluster/pause:1";

/// What to import.
#[derive(Args)]
pub struct Load {
    /// An archive of images; or the name of an image to make, when a folder follows.
    #[arg(value_name = "FILE.tar|NAME")]
    what: String,
    /// Files of the image; all belong to root in it.
    folder: Option<PathBuf>,
    /// The program that a container of it runs; once for each word.
    #[arg(long, requires = "folder", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// User that it runs as, as `uid:gid`.
    #[arg(long, requires = "folder")]
    user: Option<String>,
    /// A variable of its environment, as `NAME=VALUE`; may be repeated.
    #[arg(long, requires = "folder")]
    env: Vec<String>,
}

/// Imports it and says under which name.
pub fn load(place: &Place, load: &Load) -> Result<()> {
    let Some(folder) = &load.folder else {
        import(place, Path::new(&load.what))?;
        println!("imported {}", load.what);
        return Ok(());
    };
    let recipe =
        Recipe { name: &load.what, entrypoint: &load.entrypoint, user: load.user.as_deref(), env: &load.env };
    make(place, &recipe, folder)?;
    println!("imported {}", load.what);
    Ok(())
}

/// Images that the cluster itself runs.
pub struct Own {
    /// CoreDNS.
    pub coredns: String,
}

/// Imports the cluster's own images that aren't there yet.
pub fn import_own(place: &Place, programs: &Programs) -> Result<Own> {
    let list = node::containers(place).args(["images", "list", "--quiet"]).output()?;
    let there = String::from_utf8_lossy(&list.stdout).into_owned();
    let there = |name: &str| there.lines().any(|line| line == name);
    // What an image holds is in its tag, so that an old one is never taken for a new one.
    let coredns = format!("localhost/osier-cluster/coredns:{}", programs.coredns_tag);
    for (name, program) in [(PAUSE, &programs.pause), (coredns.as_str(), &programs.coredns)] {
        if !there(name) {
            let folder = place.path("image-root");
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder)?;
            let file = program.file_name().context("a program has a name")?;
            std::fs::copy(program, folder.join(file))?;
            let entrypoint = [format!("/{}", file.display())];
            make(place, &Recipe { name, entrypoint: &entrypoint, user: None, env: &[] }, &folder)?;
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(Own { coredns })
}

/// How a container of an image is started.
struct Recipe<'a> {
    name: &'a str,
    entrypoint: &'a [String],
    user: Option<&'a str>,
    env: &'a [String],
}

/// Makes an image of `folder` and imports it.
fn make(place: &Place, recipe: &Recipe<'_>, folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    let work = place.path("image");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    let layer = work.join("layer.tar");
    // The same folder gives the same layer, whoever makes it and when.
    machine::run(
        Command::new("tar")
            .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
            .arg("--file")
            .arg(&layer)
            .arg("--directory")
            .arg(folder)
            .arg("."),
    )?;
    let configuration = serde_json::to_string(&configuration(recipe, &digest(&layer)?))?;
    std::fs::write(work.join("configuration"), configuration)?;
    let name = format!("{}.json", digest(&work.join("configuration"))?);
    std::fs::rename(work.join("configuration"), work.join(&name))?;
    let manifest = json!([{ "Config": name, "RepoTags": [recipe.name], "Layers": ["layer.tar"] }]);
    std::fs::write(work.join("manifest.json"), manifest.to_string())?;
    let archive = place.path("image.tar");
    machine::run(
        Command::new("tar").arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&work).args([
            "manifest.json",
            "layer.tar",
            &name,
        ]),
    )?;
    import(place, &archive)?;
    std::fs::remove_file(&archive)?;
    Ok(std::fs::remove_dir_all(&work)?)
}

fn configuration(recipe: &Recipe<'_>, layer: &str) -> serde_json::Value {
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend_from_slice(recipe.env);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": recipe.entrypoint, "User": recipe.user.unwrap_or_default(), "Env": env },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    })
}

fn import(place: &Place, archive: &Path) -> Result<()> {
    if !archive.is_file() {
        bail!("there is no archive {}; to make an image of a folder, name both", archive.display());
    }
    machine::run(node::containers(place).args(["images", "import"]).arg(archive))
        .context("the image can't be imported; is the cluster up?")
}

fn digest(file: &Path) -> Result<String> {
    let done = Command::new("sha256sum").arg(file).output().context("cannot start sha256sum")?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    // A name with odd characters makes sha256sum put a backslash first.
    let digest = printed.trim_start_matches('\\').split(' ').next().unwrap_or_default();
    if digest.len() != 64 {
        bail!("sha256sum of {} failed", file.display());
    }
    Ok(digest.to_owned())
}
