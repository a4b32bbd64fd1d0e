//! Rules about the source itself that no compiler checks: who may import whom, module heads, listed exceptions, links.

mod threats;
mod walkthroughs;

use std::path::{Path, PathBuf};

/// Modules that may contain `unsafe`, each with the reason.
const UNSAFE: &[(&str, &str)] = &[
    ("proxy/src/allocator.rs", "the name of a symbol is the only way to compile in jemalloc's settings"),
    (
        "proxy/src/worker/slot.rs",
        "a future in memory that outlives it, so that no request allocates or copies one",
    ),
];

/// `(folder, forbidden text, why)`: lines of Rust under the folder that must not contain the text.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("proxy/src", "osier_pilot", "xDS is the only contract between the halves"),
    ("pilot/src", "osier_proxy", "xDS is the only contract between the halves"),
    ("core/src", "use osier_", "core depends on nothing of ours"),
    ("proto/src", "use osier_core", "proto depends on nothing of ours"),
    ("proxy/src/http", "crate::compile", "the request path reads the representation, not protobuf"),
    ("proxy/src/tcp", "crate::compile", "the request path reads the representation, not protobuf"),
    ("proxy/src/upstream", "crate::compile", "the request path reads the representation, not protobuf"),
    ("proxy/src/authz", "crate::compile", "the request path reads the representation, not protobuf"),
    ("proxy/src/authz", "osier_proto", "the request path reads the representation, not protobuf"),
    ("proxy/src/authz", "crate::xds", "decisions know no subscriptions"),
    ("proxy/src/jwt", "crate::compile", "the request path reads the representation, not protobuf"),
    ("proxy/src/jwt", "osier_proto", "the request path reads the representation, not protobuf"),
    ("proxy/src/http", "crate::xds", "what is asked for at first use is asked of `on_demand`"),
    ("proxy/src/tcp", "crate::xds", "what is asked for at first use is asked of `on_demand`"),
    ("proxy/src/upstream", "crate::xds", "the request path knows no subscriptions"),
    ("proxy/src/listener", "crate::xds", "what is asked for at first use is asked of `on_demand`"),
    ("proxy/src/config", "crate::xds", "the representation knows no subscriptions"),
    ("proxy/src/on_demand", "crate::xds", "the xDS task writes these tables, they don't know it"),
    ("proxy/src/config", "osier_proto", "the representation has no protobuf in it"),
    ("proxy/src/on_demand", "osier_proto", "the request path reads the representation, not protobuf"),
    ("proxy/src/dns", "osier_proto", "the xDS task reads name tables"),
    ("proxy/src/dns", "crate::xds", "the xDS task writes what DNS answers from"),
    ("proxy/src/dns", "crate::http", "DNS is off the request path"),
    ("proxy/src/http", "osier_proto", "the request path reads the representation, not protobuf"),
    ("proxy/src/tcp", "osier_proto", "the request path reads the representation, not protobuf"),
    ("proxy/src/upstream", "osier_proto", "the request path reads the representation, not protobuf"),
    ("pilot/src/model", "osier_proto", "the model knows nothing of the wire"),
    ("pilot/src/snapshot", "osier_proto", "the snapshot knows nothing of the wire"),
    ("pilot/src/store", "osier_proto", "the store knows nothing of the wire"),
    ("pilot/src/registry", "osier_proto", "the registry knows nothing of the wire"),
    ("pilot/src/inject", "tokio", "injection is pure: a pod in, a pod out"),
    ("pilot/src/inject", "use kube", "injection asks no API server"),
    ("pilot/src/inject", "crate::webhook", "`osier inject` has no webhook"),
    ("pilot/src/webhook", "use kube", "handlers answer from what they are given"),
    ("pilot/src/xds", "use kube", "whose a token is, `kubernetes` asks"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace")
}

/// All files below `folder` whose name ends in `ending`, without build output.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![folder.to_owned()];
    while let Some(folder) = next.pop() {
        let Ok(items) = std::fs::read_dir(&folder) else { continue };
        for item in items.flatten() {
            let (path, name) = (item.path(), item.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                next.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn layers_import_downwards_only() {
    let mut wrong = Vec::new();
    for (folder, forbidden, why) in FORBIDDEN {
        for file in files(&root().join(folder), ".rs") {
            for (number, line) in text(&file).lines().enumerate() {
                if line.contains(forbidden) && !line.trim_start().starts_with("//") {
                    wrong.push(format!("{}:{} names {forbidden}: {why}", relative(&file), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let missing: Vec<String> = files(root(), ".rs")
        .into_iter()
        .filter(|file| {
            !text(file)
                .lines()
                .find(|line| !line.starts_with("#!"))
                .is_some_and(|line| line.starts_with("//!"))
        })
        .map(|file| relative(&file))
        .collect();
    assert!(missing.is_empty(), "no module head in:\n{}", missing.join("\n"));
}

#[test]
fn unsafe_code_is_only_in_listed_modules() {
    let allowance = concat!("allow(", "unsafe_code");
    let found: Vec<String> = files(root(), ".rs")
        .into_iter()
        .filter(|file| text(file).contains(allowance))
        .map(|file| relative(&file))
        .collect();
    let listed: Vec<String> = UNSAFE.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(found, listed, "keep the list in tests/tidy/main.rs, with a reason each");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let workspace = text(&root().join("Cargo.toml"));
    assert!(workspace.contains("unsafe_code = \"deny\""), "the list above means nothing without it");
    let members = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let members: Vec<&str> = members.unwrap_or_default().split('"').skip(1).step_by(2).collect();
    assert!(members.len() >= 7, "{members:?}");
    for member in members {
        let manifest = text(&root().join(member).join("Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}");
    }
}

#[test]
fn nothing_is_left_open() {
    let marks = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("todo", "!("), concat!("#[ig", "nore]")];
    let mut wrong = Vec::new();
    for file in files(root(), ".rs").into_iter().chain(files(root(), ".md")) {
        for (number, line) in text(&file).lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                wrong.push(format!("{}:{} has {mark}", relative(&file), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in files(root(), ".md") {
        let folder = page.parent().expect("a page lies in a folder");
        for link in text(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or(link);
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                broken.push(format!("{} -> {link}", relative(&page)));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
