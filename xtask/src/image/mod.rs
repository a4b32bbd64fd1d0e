//! Images: an archive as `docker save` writes it, made of a folder: one layer, a configuration, a manifest that names both.
//!
//! `root` fills a folder with programs and what they need; `osier` makes our own images, `workload` those of
//! real applications for tests.

pub mod osier;
mod root;
pub mod workload;

use std::borrow::Borrow;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::run::run;

pub use root::Root;

/// How an image is called, and how a container of it is started.
pub struct Recipe<'a> {
    /// Its names, with tags.
    pub names: &'a [String],
    /// The program, word by word.
    pub entrypoint: &'a [String],
    /// As `uid:gid`; root where nothing is said.
    pub user: Option<&'a str>,
    /// Variables, as `NAME=VALUE`.
    pub env: &'a [String],
    /// The signal that asks it to end; SIGTERM where nothing is said.
    pub stop_signal: Option<&'a str>,
}

/// Writes an archive with the image of `folder`. The same folder gives the same image, whoever makes it and when.
pub fn archive(recipe: &Recipe<'_>, folder: &Path, archive: &Path) -> Result<()> {
    archive_of(&[(recipe, folder)], None, archive)
}

/// Writes an archive with several images, each of a folder, all on the layer `base` where there is one.
pub fn archive_of<'r, R: Borrow<Recipe<'r>>>(
    images: &[(R, &Path)],
    base: Option<&Path>,
    archive: &Path,
) -> Result<()> {
    let work = archive.with_extension("parts");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let mut shared = Vec::new();
    if let Some(base) = base {
        let name = "base.tar".to_owned();
        std::os::unix::fs::symlink(base, work.join(&name))?;
        shared.push((name, digest(base)?));
    }
    let (mut files, mut manifest) = (vec!["manifest.json".to_owned()], Vec::new());
    files.extend(shared.iter().map(|(name, _)| name.clone()));
    for (number, (recipe, folder)) in images.iter().enumerate() {
        let recipe = recipe.borrow();
        let mut layers = shared.clone();
        let name = format!("layer-{number}.tar");
        pack(folder, &work.join(&name))?;
        layers.push((name.clone(), digest(&work.join(&name))?));
        let digests: Vec<&str> = layers.iter().map(|(_, digest)| digest.as_str()).collect();
        let text = serde_json::to_string(&configuration(recipe, &digests))?;
        std::fs::write(work.join("configuration"), text)?;
        let configuration = format!("{}.json", digest(&work.join("configuration"))?);
        std::fs::rename(work.join("configuration"), work.join(&configuration))?;
        let layers: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
        manifest.push(json!({ "Config": configuration, "RepoTags": recipe.names, "Layers": layers }));
        files.extend([name, configuration]);
    }
    std::fs::write(work.join("manifest.json"), serde_json::Value::Array(manifest).to_string())?;
    // The shared layer is a link to where it is kept.
    run(Command::new("tar")
        .args(["--create", "--dereference", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(&work)
        .args(&files))?;
    Ok(std::fs::remove_dir_all(&work)?)
}

/// A layer of a folder; nothing in it tells who made it and when.
fn pack(folder: &Path, layer: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .arg("--file")
        .arg(layer)
        .arg("--directory")
        .arg(folder)
        .arg("."))
}

fn configuration(recipe: &Recipe<'_>, layers: &[&str]) -> serde_json::Value {
    let layers: Vec<String> = layers.iter().map(|digest| format!("sha256:{digest}")).collect();
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend_from_slice(recipe.env);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": recipe.entrypoint, "User": recipe.user.unwrap_or_default(), "Env": env,
            "StopSignal": recipe.stop_signal.unwrap_or_default(),
        },
        "rootfs": { "type": "layers", "diff_ids": layers },
    })
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
