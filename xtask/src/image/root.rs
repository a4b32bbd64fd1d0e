//! A folder that becomes an image: programs of this machine, and the libraries that they load.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::run;

/// The folder while it is filled; removed at its end.
pub struct Root(PathBuf);

impl Root {
    /// An empty one at `folder`, which must not hold anything that is still needed.
    pub fn new(folder: PathBuf) -> Result<Self> {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a file in at a path of the image.
    pub fn file(&self, path: &str, content: &str) -> Result<()> {
        let file = self.place(Path::new(path))?;
        std::fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    }

    /// An empty folder.
    pub fn folder(&self, path: &str) -> Result<()> {
        Ok(std::fs::create_dir_all(self.0.join(path.trim_start_matches('/')))?)
    }

    /// Puts a program of ours in at `path`, without the parts that only a debugger reads.
    pub fn own_program(&self, program: &Path, path: &str) -> Result<()> {
        let target = self.place(Path::new(path))?;
        run(Command::new("strip").arg("--output-file").arg(&target).arg(program))?;
        self.libraries(program)
    }

    /// Puts a program of the system's in where it is here.
    pub fn program(&self, program: &Path) -> Result<()> {
        self.copy(program)?;
        self.libraries(program)
    }

    /// A copy of one file of this machine, at the same path. What a link points at comes under the link's name.
    pub fn copy(&self, file: &Path) -> Result<()> {
        let target = self.place(file)?;
        if !target.exists() {
            std::fs::copy(file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(())
    }

    /// What the loader would load for `program`.
    fn libraries(&self, program: &Path) -> Result<()> {
        let done = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            let file = line.split("=>").last().and_then(|rest| rest.split_whitespace().next());
            if let Some(file) = file.filter(|file| file.starts_with('/')) {
                self.copy(Path::new(file))?;
            }
        }
        Ok(())
    }

    fn place(&self, path: &Path) -> Result<PathBuf> {
        let target = self.0.join(path.strip_prefix("/").unwrap_or(path));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        Ok(target)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
