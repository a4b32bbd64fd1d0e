//! Licences, bans and sources of the dependency graph, by the lists of deny.toml.
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
    let (allowed, banned) = (allowed_licences(&rules), banned_crates(&rules));
    let packages = packages()?;
    let mut wrong = Vec::new();
    for line in &packages {
        let (id, licence) = line.split_once('|').context("cargo tree printed no licence")?;
        let name = id.split(' ').next().unwrap_or(id);
        if banned.iter().any(|banned| banned == name) {
            wrong.push(format!("{id} is banned by deny.toml"));
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

fn banned_crates(rules: &str) -> Vec<String> {
    rules.split("crate = \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
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
}
