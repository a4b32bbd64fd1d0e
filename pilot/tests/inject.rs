//! Golden files of injection: manifests in, manifests with proxies out. Differences are reviewed like code.
//!
//! Each folder of `inject/` is a case: `input.yaml`, `output.yaml`, and `said.txt` where there is something to say (also the errors
//! of what is refused); `values.yaml` and `mesh.yaml` where they aren't the defaults. To write the expected files anew:
//!
//! ```sh
//! OSIER_UPDATE=1 cargo test -p osier-pilot --test inject
//! ```

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use osier_pilot::inject::manifest::{self, Manifest};
use osier_pilot::inject::{Injector, MeshSettings, Values};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 20, "{} cases", cases.len());
    cases
}

fn injector(case: &Path) -> Injector {
    let text = |name: &str| std::fs::read_to_string(case.join(name)).unwrap_or_default();
    let mut values = Values::parse(&text("values.yaml")).unwrap();
    values.global.tag = "1.0.0".into();
    Injector { values, mesh: MeshSettings::parse(&text("mesh.yaml")).unwrap(), ..Injector::default() }
}

fn input(case: &Path) -> String {
    std::fs::read_to_string(case.join("input.yaml")).unwrap()
}

#[test]
fn manifests_are_as_expected() {
    let update = std::env::var_os("OSIER_UPDATE").is_some();
    let mut differences = Vec::new();
    for case in cases() {
        let (text, said) = match manifest::inject(&injector(&case), &input(&case)) {
            Ok(Manifest { text, notes }) => (text, notes.iter().map(|note| format!("{note}\n")).collect()),
            Err(error) => (String::new(), format!("{}\n", error.to_string().replace("; ", "\n"))),
        };
        for (name, made) in [("output.yaml", text), ("said.txt", said)] {
            let path = case.join(name);
            let wanted = std::fs::read_to_string(&path).unwrap_or_default();
            if update && made.is_empty() {
                let _ = std::fs::remove_file(&path);
            } else if update {
                std::fs::write(&path, &made).unwrap();
            } else if wanted != made {
                let at = wanted.lines().zip(made.lines()).position(|(a, b)| a != b);
                let at = at.unwrap_or(wanted.lines().count().min(made.lines().count()));
                let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").to_owned();
                differences.push(format!(
                    "{}, line {}:\n  expected {}\n  made     {}",
                    path.display(),
                    at + 1,
                    line(&wanted),
                    line(&made)
                ));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{}\nif this is meant: OSIER_UPDATE=1 cargo test -p osier-pilot --test inject, and look at the diff",
        differences.join("\n")
    );
}

#[test]
fn injecting_again_changes_nothing() {
    for case in cases() {
        let injector = injector(&case);
        let Ok(once) = manifest::inject(&injector, &input(&case)) else { continue };
        let twice = manifest::inject(&injector, &once.text).unwrap();
        assert_eq!(twice.text, once.text, "{}", case.display());
    }
}
