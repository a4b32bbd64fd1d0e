//! Rules into the kernel: by the first tool that works, with what another tool has set before taken away.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::flags::Backend;
use super::iptables::{self, Present};
use super::netlink::Item;
use super::nft;
use super::plan::{Capture, IPV6_ADDRESSES, Mode};
use super::rules::{Family, INBOUND_SOURCE_V6, TableRules};

/// Why nothing, or not everything, is set.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No tool could do it.
    #[error(
        "neither nft nor iptables could set the rules; install one of them in the image, and give this container NET_ADMIN and NET_RAW:\n  {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
    )]
    NoTool(Vec<ToolError>),
    /// A tool could not remove what it shows.
    #[error("cannot remove rules: {0}")]
    Remove(ToolError),
    /// The kernel refused something beside the rules.
    #[error("`{}`: {error}", item.command())]
    Routing {
        /// What.
        item: Item,
        /// Why.
        error: nix::errno::Errno,
    },
}

/// A tool that didn't do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {reason}")]
pub struct ToolError {
    program: String,
    reason: String,
}

/// An iptables, by the names of its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nft,
    Legacy,
    Plain,
}

impl Variant {
    fn programs(self, family: Family, what: &str) -> String {
        let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
        match self {
            Self::Nft => format!("{tool}-nft-{what}"),
            Self::Legacy => format!("{tool}-legacy-{what}"),
            Self::Plain => format!("{tool}-{what}"),
        }
    }
}

/// What sets rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Nft,
    Iptables(Variant),
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables(Variant::Nft) => "iptables-nft",
            Self::Iptables(Variant::Legacy) => "iptables-legacy",
            Self::Iptables(Variant::Plain) => "iptables",
        }
    }
}

fn candidates(backend: Backend) -> Vec<Tool> {
    let [nft, by_nft, legacy, plain] = [
        Tool::Nft,
        Tool::Iptables(Variant::Nft),
        Tool::Iptables(Variant::Legacy),
        Tool::Iptables(Variant::Plain),
    ];
    match backend {
        Backend::Auto => vec![nft, by_nft, legacy, plain],
        Backend::Nft => vec![nft],
        Backend::IptablesNft => vec![by_nft],
        Backend::IptablesLegacy => vec![legacy],
        Backend::Iptables => vec![plain],
    }
}

/// Puts the rules in force. The result says with what.
pub fn apply(capture: &Capture, backend: Backend) -> Result<String, ApplyError> {
    let rules = capture.rules();
    let mut failed = Vec::new();
    for tool in candidates(backend) {
        let set = match tool {
            Tool::Nft => set_by_nft(&rules, capture.ipv6),
            Tool::Iptables(variant) => set_by_iptables(variant, &rules, capture.ipv6),
        };
        if let Err(error) = set {
            failed.push(error);
            continue;
        }
        remove_rules(Some(tool))?;
        // An earlier run may have been told another mode.
        remove_routing(&marked_routing(&Capture { ipv6: true, ..capture.clone() }))?;
        for item in routing(capture) {
            item.set().map_err(|error| ApplyError::Routing { item, error })?;
        }
        let versions = if capture.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        return Ok(format!("traffic is captured ({versions}, set with {})\n", tool.name()));
    }
    Err(ApplyError::NoTool(failed))
}

/// Removes what any run has set.
pub fn clean(capture: &Capture) -> Result<String, ApplyError> {
    remove_rules(None)?;
    remove_routing(&routing(&Capture { ipv6: true, mode: Mode::Tproxy, ..capture.clone() }))?;
    Ok("nothing is captured any more\n".to_owned())
}

/// What would be set, as text.
pub fn dry_run(capture: &Capture, backend: Backend) -> String {
    let rules = capture.rules();
    let mut out = match backend {
        Backend::Auto | Backend::Nft => format!("# nft -f -\n{}", nft::script(&rules, capture.ipv6)),
        Backend::IptablesNft | Backend::IptablesLegacy | Backend::Iptables => {
            let families = [(Family::V4, "iptables"), (Family::V6, "ip6tables")];
            let families = families.into_iter().filter(|(family, _)| *family == Family::V4 || capture.ipv6);
            let text = |(family, tool)| {
                let script = iptables::script(&rules, family, &Present::default());
                format!("# {tool}-restore --noflush\n{script}")
            };
            families.map(text).collect()
        }
    };
    routing(capture).into_iter().for_each(|item| out += &format!("# {}\n", item.command()));
    out
}

/// What is set beside rules.
fn routing(capture: &Capture) -> Vec<Item> {
    let mut items = Vec::new();
    if capture.ipv6 {
        items.push(Item::Address(INBOUND_SOURCE_V6.into()));
    }
    if capture.mode == Mode::Tproxy {
        items.extend(marked_routing(capture));
    }
    items
}

/// What takes marked packets in.
fn marked_routing(capture: &Capture) -> Vec<Item> {
    let families = [Family::V4, Family::V6];
    let families = families.into_iter().filter(|family| *family == Family::V4 || capture.ipv6);
    let items = |family| {
        [Item::MarkRule(family, capture.mark, capture.table), Item::LocalRoute(family, capture.table)]
    };
    families.flat_map(items).collect()
}

fn remove_routing(items: &[Item]) -> Result<(), ApplyError> {
    items
        .iter()
        .try_for_each(|item| item.remove().map_err(|error| ApplyError::Routing { item: *item, error }))
}

fn set_by_nft(rules: &[TableRules], ipv6: bool) -> Result<(), ToolError> {
    run("nft", &["-f", "-"], Some(&nft::script(rules, ipv6))).map(drop)
}

fn set_by_iptables(variant: Variant, rules: &[TableRules], ipv6: bool) -> Result<(), ToolError> {
    restore(variant, Family::V4, rules)?;
    match ipv6 {
        true => restore(variant, Family::V6, rules),
        // What an earlier run has set where there was IPv6.
        false => remove_by_iptables(variant, Family::V6),
    }
}

fn restore(variant: Variant, family: Family, rules: &[TableRules]) -> Result<(), ToolError> {
    let present = Present::parse(&run(&variant.programs(family, "save"), &[], None)?);
    let script = iptables::script(rules, family, &present);
    // Another program may hold the lock of the old tables.
    run(&variant.programs(family, "restore"), &["--noflush", "-w", "30"], Some(&script)).map(drop)
}

/// Removes the rules of all tools but `kept`.
fn remove_rules(kept: Option<Tool>) -> Result<(), ApplyError> {
    if kept != Some(Tool::Nft) && nft_has_ours() {
        run("nft", &["-f", "-"], Some(&nft::clean())).map_err(ApplyError::Remove)?;
    }
    // Called just "iptables" it is one of the two, and what it has set would go with that one.
    if kept == Some(Tool::Iptables(Variant::Plain)) {
        return Ok(());
    }
    for variant in [Variant::Nft, Variant::Legacy, Variant::Plain] {
        if kept == Some(Tool::Iptables(variant)) || (kept.is_some() && variant == Variant::Plain) {
            continue;
        }
        for family in [Family::V4, Family::V6] {
            remove_by_iptables(variant, family).map_err(ApplyError::Remove)?;
        }
    }
    Ok(())
}

fn nft_has_ours() -> bool {
    run("nft", &["list", "tables"], None).is_ok_and(|text| text.contains(nft::PREFIX))
}

fn remove_by_iptables(variant: Variant, family: Family) -> Result<(), ToolError> {
    if family == Family::V6 && !Path::new(IPV6_ADDRESSES).exists() {
        return Ok(());
    }
    // A tool that isn't there, or cannot even look, has set nothing.
    let Ok(saved) = run(&variant.programs(family, "save"), &[], None) else { return Ok(()) };
    let present = Present::parse(&saved);
    if present.is_empty() {
        return Ok(());
    }
    let script = iptables::script(&[], family, &present);
    run(&variant.programs(family, "restore"), &["--noflush", "-w", "30"], Some(&script)).map(drop)
}

/// Runs a tool; gives what it printed.
fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, ToolError> {
    let fail = |reason: String| ToolError { program: program.to_owned(), reason };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    // A user's PATH often lacks the folders of these tools.
    command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(fail("not installed".to_owned()));
        }
        Err(error) => return Err(fail(error.to_string())),
    };
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // A tool that ends before it has read everything says why itself.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    Err(fail(if lines.is_empty() { output.status.to_string() } else { lines.join(" ") }))
}
