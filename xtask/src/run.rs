//! Runs suites and counts their tests. The last line of a test run is `N passed, N failed`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::part;
use crate::suite::{Runs, SUITES, Suite};

/// Tests that ran.
#[derive(Default, Clone, Copy)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs the named suites, or all of them. True when nothing failed.
pub fn test(names: &[String], extra: &[(&'static str, OsString)]) -> Result<bool> {
    for name in names {
        if !SUITES.iter().any(|suite| suite.name == name) {
            bail!("there is no suite `{name}`; `cargo xtask test --list` names them");
        }
    }
    let is_chosen = |suite: &&Suite| names.is_empty() || names.iter().any(|name| name == suite.name);
    let chosen = || SUITES.iter().filter(is_chosen);
    if chosen().any(|suite| !matches!(suite.runs, Runs::Cargo(arguments) if arguments.contains(&"--exclude")))
    {
        build_programs()?;
    }
    let mut total = Count::default();
    let mut summary = Vec::new();
    for suite in chosen() {
        println!("\n=== {}: {}", suite.name, suite.about);
        let started = std::time::Instant::now();
        let count = run_suite(suite, extra).unwrap_or_else(|error| {
            println!("suite {} could not run: {error:#}", suite.name);
            Count { passed: 0, failed: 1 }
        });
        summary.push(format!(
            "{:<14}{:>6} passed {:>4} failed {:>6.0} s",
            suite.name,
            count.passed,
            count.failed,
            started.elapsed().as_secs_f64()
        ));
        total.passed += count.passed;
        total.failed += count.failed;
    }
    println!("\n{}", summary.join("\n"));
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0 && total.passed > 0)
}

/// Builds and runs the benchmark program with the release profile.
pub fn bench(arguments: &[String]) -> Result<bool> {
    // The whole workspace at once: a package alone would be built with other features of its dependencies.
    let build = ["build", "--quiet", "--release", "--locked", "--workspace", "--bins"];
    eprintln!("building with the release profile");
    if !Command::new(cargo()).args(build).current_dir(part::workspace()).status()?.success() {
        bail!("the release build failed");
    }
    let variables = part::ensure(&crate::suite::BENCH_PARTS)?;
    let bench = target_folder()?.join("release/bench");
    let status = Command::new(&bench).args(arguments).envs(variables).current_dir(part::workspace()).status();
    Ok(status.with_context(|| format!("cannot start {}", bench.display()))?.success())
}

/// Where cargo puts what it builds.
pub fn target_folder() -> Result<PathBuf> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(part::workspace())
        .output()
        .context("cannot start cargo")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(PathBuf::from(metadata["target_directory"].as_str().context("cargo names no target directory")?))
}

/// The programs that suites start, in the same profile as the tests.
fn build_programs() -> Result<()> {
    println!("building the programs that the suites start");
    let status = Command::new(cargo())
        .args(["build", "--quiet", "--locked", "--workspace", "--bins"])
        .current_dir(part::workspace())
        .status()?;
    if !status.success() {
        bail!("the programs do not build");
    }
    Ok(())
}

fn run_suite(suite: &Suite, extra: &[(&'static str, OsString)]) -> Result<Count> {
    let parts = part::ensure(suite.parts)?.into_iter().map(|(name, path)| (name, path.into_os_string()));
    let variables: Vec<(&str, OsString)> = parts.chain(extra.iter().cloned()).collect();
    match suite.runs {
        Runs::Cargo(arguments) => {
            let mut command = Command::new(cargo());
            command.args(["test", "--quiet", "--locked", "--no-fail-fast"]).args(arguments);
            count_lines(command.envs(variables), count_libtest)
        }
        Runs::Demo => {
            let mut command = Command::new(cargo());
            command.args(["run", "--quiet", "--locked", "--bin", "osier", "--", "demo", "--check", "--json"]);
            count_lines(&mut command, count_demo)
        }
    }
}

/// Runs `command`, shows its output as it comes, and adds up what `count` finds in each line.
fn count_lines(command: &mut Command, count: fn(&str) -> Count) -> Result<Count> {
    let mut child = command
        .current_dir(part::workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut total = Count::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        let found = count(&line);
        total.passed += found.passed;
        total.failed += found.failed;
    }
    if !child.wait()?.success() && total.failed == 0 {
        println!("the command failed without a failed test: it did not build, or it was ended");
        total.failed = 1;
    }
    Ok(total)
}

/// Reads `test result: ok. 12 passed; 0 failed; …`.
fn count_libtest(line: &str) -> Count {
    let Some(rest) = line.strip_prefix("test result: ") else { return Count::default() };
    let number = |word: &str| {
        rest.split([';', '.'])
            .find_map(|piece| piece.trim().strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Count { passed: number("passed"), failed: number("failed") }
}

/// Reads one figure of `osier demo --check --json`: an object with `"ok": true` or `false`.
fn count_demo(line: &str) -> Count {
    match serde_json::from_str::<serde_json::Value>(line).ok().and_then(|figure| figure.get("ok")?.as_bool())
    {
        Some(true) => Count { passed: 1, failed: 0 },
        Some(false) => Count { passed: 0, failed: 1 },
        None => Count::default(),
    }
}

/// Runs a command that must succeed; its words on failure.
pub fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !done.status.success() {
        bail!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// The cargo that runs us.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_prints() {
        let count = count_libtest(
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        assert_eq!((count.passed, count.failed), (12, 3));
        let count = count_libtest("running 12 tests");
        assert_eq!((count.passed, count.failed), (0, 0));
    }

    #[test]
    fn counts_figures_of_the_demo() {
        assert_eq!(count_demo(r#"{"name":"split","ok":true}"#).passed, 1);
        assert_eq!(count_demo(r#"{"name":"split","ok":false}"#).failed, 1);
        assert_eq!(count_demo("starting").passed, 0);
    }
}
