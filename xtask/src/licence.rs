//! Licences, bans and sources of the dependency graph, by the lists of deny.toml. A ban may be of a crate, or of its versions below one.
//!
//! cargo-deny does this where it is installed. It takes ten minutes to build, so without it the same lists are checked
//! here against `cargo tree`: each package needs at least one allowed choice of its licence expression.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::part;

/// True when the whole graph is allowed.
pub fn check() -> Result<bool> {
    if part::find_program("cargo-deny").is_some() {
        let arguments = ["deny", "--offline", "check", "licenses", "bans", "sources"];
        return Ok(Command::new("cargo").args(arguments).current_dir(part::workspace()).status()?.success());
    }
    let rules =
        std::fs::read_to_string(part::workspace().join("deny.toml")).context("cannot read deny.toml")?;
    let (allowed, banned) = (allowed_licences(&rules), banned_crates(&rules)?);
    let packages = packages()?;
    let mut wrong = Vec::new();
    for line in &packages {
        let (id, licence) = line.split_once('|').context("cargo tree printed no licence")?;
        let mut words = id.split(' ');
        let (name, version) = (words.next().unwrap_or(id), words.next().unwrap_or_default());
        if let Some(ban) = banned.iter().find(|ban| ban.holds(name, version)) {
            wrong.push(format!("{id} is banned by deny.toml: {}", ban.reason));
        }
        if id.contains("(http") || id.contains("(git") {
            wrong.push(format!("{id} does not come from the registry"));
        }
        if !id.contains("(/") && !is_allowed(licence, &allowed) {
            wrong.push(format!("{id} has licence `{licence}`, which deny.toml does not allow"));
        }
    }
    println!("licences: {} packages, {} not allowed", packages.len(), wrong.len());
    wrong.iter().for_each(|line| println!("  {line}"));
    Ok(wrong.is_empty())
}

/// `name version (path)|licence` of each package that is really built. `cargo metadata` would also name optional ones
/// that nothing switches on.
fn packages() -> Result<BTreeSet<String>> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--edges",
            "all",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}",
        ])
        .current_dir(part::workspace())
        .output()?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|line| line.contains('|'))
        .collect())
}

/// True when some choice of the SPDX expression has only allowed licences. Parentheses are expanded by trying each side of `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let flat = expression.replace('/', " OR ").replace(['(', ')'], " ");
    if expression.contains('(') {
        // `(A OR B) AND C`: every licence in an AND position must be allowed, one of each OR group.
        return split_top(expression, " AND ")
            .iter()
            .all(|part| is_allowed_flat(part.trim_matches(['(', ')', ' ']), allowed));
    }
    is_allowed_flat(&flat, allowed)
}

fn is_allowed_flat(expression: &str, allowed: &[String]) -> bool {
    expression
        .split(" OR ")
        .any(|choice| choice.split(" AND ").all(|licence| allowed.iter().any(|name| name == licence.trim())))
}

/// Splits at `separator` outside parentheses.
fn split_top<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(separator) => {
                parts.push(&text[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn allowed_licences(rules: &str) -> Vec<String> {
    let list = rules.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A crate that may not be in the graph.
#[derive(Debug, PartialEq, Eq)]
struct Ban {
    name: String,
    /// Only versions below this one.
    below: Option<String>,
    reason: String,
}

impl Ban {
    fn holds(&self, name: &str, version: &str) -> bool {
        let older = |floor: &String| numbers(version.trim_start_matches('v')) < numbers(floor);
        self.name == name && self.below.as_ref().is_none_or(older)
    }
}

/// `1.2.3-rc.1+4` as numbers; what is no number counts as nothing, so a candidate is taken for its release.
fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or(version);
    release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// `{ crate = "name", … }` and `{ crate = "name:<1.2.3", … }`, as cargo-deny reads them.
fn banned_crates(rules: &str) -> Result<Vec<Ban>> {
    let quoted = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key} = \""))?.1;
        rest.split_once('"').map(|(text, _)| text.to_owned())
    };
    let lines = rules.lines().filter(|line| !line.trim_start().starts_with('#') && line.contains("crate ="));
    lines
        .map(|line| {
            let spec = quoted(line, "crate").with_context(|| format!("no crate in `{line}`"))?;
            let reason = quoted(line, "reason").with_context(|| format!("no reason in `{line}`"))?;
            Ok(match spec.split_once(":<") {
                Some((name, floor)) => Ban { name: name.into(), below: Some(floor.into()), reason },
                None if spec.contains([':', '@']) => {
                    bail!("`{spec}`: only `name` and `name:<version` are read")
                }
                None => Ban { name: spec, below: None, reason },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_need_one_allowed_choice() {
        let allowed: Vec<String> = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).to_vec();
        for (expression, wanted) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT/Apache-2.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), wanted, "{expression}");
        }
    }

    #[test]
    fn banned_are_crates_and_their_old_versions() {
        let rules = std::fs::read_to_string(part::workspace().join("deny.toml")).expect("deny.toml");
        let banned = banned_crates(&rules).expect("bans");
        let is_banned = |name: &str, version: &str| banned.iter().any(|ban| ban.holds(name, version));
        for name in ["ring", "openssl-sys", "native-tls", "reqwest", "chrono"] {
            assert!(is_banned(name, "v99.0.0"), "{name}");
        }
        for (name, last_bad, first_good) in [
            ("h2", "v0.4.15", "v0.4.16"),
            ("h2", "v0.3.27", "v0.4.20"),
            ("rustls", "v0.23.17", "v0.23.18"),
            ("rustls-webpki", "v0.103.12", "v0.103.13"),
            ("bytes", "v1.11.0", "v1.11.1"),
            ("hickory-proto", "v0.26.0", "v0.26.1"),
            ("idna", "v0.5.0", "v1.0.0"),
            ("regex", "v1.5.4", "v1.13.0"),
            ("aws-lc-sys", "v0.38.0", "v0.39.0"),
            ("tonic", "v0.12.2", "v0.12.3"),
        ] {
            assert!(is_banned(name, last_bad) && !is_banned(name, first_good), "{name}");
        }
        assert!(banned_crates("  { crate = \"a@1.0\", reason = \"\" },").is_err());
    }
}
