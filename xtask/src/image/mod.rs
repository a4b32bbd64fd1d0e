//! Images: an archive as `docker save` writes it, made of a folder: one layer, a configuration, a manifest that names both.
//!
//! `root` fills a folder with programs and what they need; `osier` makes our own images.

pub mod osier;
mod root;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

pub use root::Root;

/// How an image is called, and how a container of it is started.
pub struct Recipe<'a> {
    /// Its names, with tags.
    pub names: &'a [&'a str],
    /// The program, word by word.
    pub entrypoint: &'a [String],
    /// As `uid:gid`; root where nothing is said.
    pub user: Option<&'a str>,
    /// Variables, as `NAME=VALUE`.
    pub env: &'a [String],
}

/// Writes an archive with the image of `folder`. The same folder gives the same image, whoever makes it and when.
pub fn archive(recipe: &Recipe<'_>, folder: &Path, archive: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    let work = archive.with_extension("parts");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let layer = work.join("layer.tar");
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .arg("--file")
        .arg(&layer)
        .arg("--directory")
        .arg(folder)
        .arg("."))?;
    let configuration = serde_json::to_string(&configuration(recipe, &digest(&layer)?))?;
    std::fs::write(work.join("configuration"), configuration)?;
    let name = format!("{}.json", digest(&work.join("configuration"))?);
    std::fs::rename(work.join("configuration"), work.join(&name))?;
    let manifest = json!([{ "Config": name, "RepoTags": recipe.names, "Layers": ["layer.tar"] }]);
    std::fs::write(work.join("manifest.json"), manifest.to_string())?;
    run(Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(&work)
        .args(["manifest.json", "layer.tar", &name]))?;
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

/// Runs a command that must succeed.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let done = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    if !done.status.success() {
        bail!("{} failed: {}", program.display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
