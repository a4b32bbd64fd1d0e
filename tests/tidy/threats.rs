//! The tables of threats in docs/security.md name tests. A name that leads nowhere is a promise that nobody keeps.

use super::{files, root, text};

/// The rows below a heading, their cells trimmed, without the head of the table.
fn rows<'p>(page: &'p str, heading: &str) -> Vec<Vec<&'p str>> {
    let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    let section = rest.split("\n## ").next().unwrap_or(rest).split("\n### ").next().unwrap_or(rest);
    let lines = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// `file::test`, each in backticks, of a cell.
fn named(cell: &str) -> Vec<(&str, &str)> {
    cell.split('`').skip(1).step_by(2).map(|name| name.rsplit_once("::").unwrap_or((name, ""))).collect()
}

/// True where `source` has a test of that name: the attribute stands right before it, but for others.
fn has_test(source: &str, name: &str) -> bool {
    let declared = [format!("fn {name}("), format!("async fn {name}(")];
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            if marked && declared.iter().any(|declared| line.starts_with(declared)) {
                return true;
            }
            marked = false;
        }
    }
    false
}

#[test]
fn every_threat_has_a_test_or_a_reason() {
    let page = text(&root().join("docs/security.md"));
    let threats = rows(&page, "### What a hostile pod or client can try");
    let numbers: Vec<String> = threats.iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(numbers, (1..=43).map(|n| n.to_string()).collect::<Vec<_>>(), "each has its row");
    let classes = rows(&page, "### Mistakes that other proxies and control planes have made");
    assert!(classes.len() >= 40, "{}", classes.len());
    let sources = files(root(), ".rs");
    let mut wrong = Vec::new();
    for row in threats.iter().map(|row| &row[1..]).chain(classes.iter().map(Vec::as_slice)) {
        let [what, does, tests] = row else { panic!("not three cells beside the number: {row:?}") };
        if *tests == "—" {
            let excused = does.contains("not") || does.contains("never") || does.contains("no ");
            wrong
                .extend((!excused).then(|| format!("{what}: neither a test nor a reason why there is none")));
            continue;
        }
        let tests = named(tests);
        wrong.extend(tests.is_empty().then(|| format!("{what}: no test is named")));
        for (file, test) in tests {
            let at = |path: &&std::path::PathBuf| {
                let path = path.with_extension("");
                let path = if path.ends_with("mod") { path.parent().unwrap_or(&path) } else { &path };
                path.ends_with(file)
            };
            if !sources.iter().filter(at).any(|path| has_test(&text(path), test)) {
                wrong.push(format!("{what}: there is no test {file}::{test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_test_is_known_by_its_attribute() {
    let source = "#[tokio::test(start_paused = true)]\n#[cfg(unix)]\nasync fn one() {}\nfn two() {}\n#[test]\nfn three() {}";
    assert!(has_test(source, "one") && has_test(source, "three"));
    assert!(!has_test(source, "two") && !has_test(source, "four") && !has_test(source, "thre"));
    assert_eq!(named("`a/b::c` and `d::e`"), [("a/b", "c"), ("d", "e")]);
}
