//! What a page asks its reader to do in a browser: a script of `tests/cluster/browser/`, in Chromium.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Runs `<first word>.mjs` against the forwarded port, with the other words; pictures of what it saw are named after the page.
pub fn run(words: &[String], page: &str, port: &str, pictures: &Path) -> Result<()> {
    let (name, arguments) = words.split_first().context("a script's name")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/browser").join(format!("{name}.mjs"));
    // The folder of node_modules; the scripts take Playwright from there.
    let part = std::env::var_os("OSIER_TEST_BROWSER")
        .context("OSIER_TEST_BROWSER is not set: run this suite with `cargo xtask test`")?;
    let mut command = Command::new("node");
    command.arg(script).arg(format!("http://localhost:{port}")).arg(pictures.join(page)).args(arguments);
    let done = command.env("OSIER_TEST_BROWSER", part).output().context("cannot start node")?;
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        bail!("{}", String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
