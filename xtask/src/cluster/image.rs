//! Images: made from folders, imported into containerd, never pulled.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::node;
use super::place::Place;
use super::program::Programs;
use crate::image::osier::{self, Build};
use crate::image::{self, Recipe, workload};
use crate::run::run;

/// The image of the process that holds a pod's namespaces. Its source doesn't change; if it does, so must the tag.
pub const PAUSE: &str = "localhost/osier-cluster/pause:1";

/// What to import.
#[derive(Args)]
pub struct Load {
    /// An archive of images; or the name of an image to make, when a folder follows.
    #[arg(value_name = "FILE.tar|NAME", required_unless_present_any = ["osier", "applications"])]
    what: Option<String>,
    /// Build Osier's own images with this profile and import them.
    #[arg(long, value_name = "PROFILE", value_parser = ["release", "dev"], conflicts_with_all = ["what", "folder"])]
    osier: Option<String>,
    /// Import the images of applications that the walkthroughs run.
    #[arg(long, conflicts_with_all = ["what", "folder"])]
    applications: bool,
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
    if let Some(profile) = &load.osier {
        for image in osier::archives(&Build::for_tests(profile, place.path("images")))? {
            import(place, &image.archive)?;
            std::fs::remove_file(&image.archive)?;
            println!("imported {}", image.name);
        }
        return Ok(());
    }
    if load.applications {
        return load_applications(place);
    }
    let what = load.what.as_deref().context("an archive or a name")?;
    let Some(folder) = &load.folder else {
        import(place, Path::new(what))?;
        println!("imported {what}");
        return Ok(());
    };
    let recipe = Recipe {
        names: &[what.to_owned()],
        entrypoint: &load.entrypoint,
        user: load.user.as_deref(),
        env: &load.env,
        stop_signal: None,
    };
    make(place, &recipe, folder)?;
    println!("imported {what}");
    Ok(())
}

/// Imports the walkthroughs' images, where they aren't there as they are now.
fn load_applications(place: &Place) -> Result<()> {
    let (archive, names) = workload::archive(&place.path("images"), None)?;
    import(place, &archive)?;
    std::fs::remove_file(&archive)?;
    names.iter().for_each(|name| println!("imported {name}"));
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
            let recipe = Recipe {
                names: &[name.to_owned()],
                entrypoint: &entrypoint,
                user: None,
                env: &[],
                stop_signal: None,
            };
            make(place, &recipe, &folder)?;
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(Own { coredns })
}

/// Makes an image of `folder` and imports it.
fn make(place: &Place, recipe: &Recipe<'_>, folder: &Path) -> Result<()> {
    let archive = place.path("image.tar");
    image::archive(recipe, folder, &archive)?;
    import(place, &archive)?;
    Ok(std::fs::remove_file(&archive)?)
}

fn import(place: &Place, archive: &Path) -> Result<()> {
    if !archive.is_file() {
        bail!("there is no archive {}; to make an image of a folder, name both", archive.display());
    }
    run(node::containers(place).args(["images", "import"]).arg(archive))
        .context("the image can't be imported; is the cluster up?")
}
