//! `osier-proxy init`: the rules that turn a pod's traffic to its sidecar. Runs in the init container and leaves.
//!
//! Words (`flags`) become one checked value ([`plan::Capture`]), that becomes one list of rules ([`rules`]), and that is rendered for
//! nftables (`nft`) or iptables (`iptables`) and put into the kernel by their tools (`apply`). Addresses, rules and routes of the
//! kernel's routing are set over `netlink`.
//!
//! Invariants: chains of the kernel hold nothing of ours but one jump into a chain of our own, so that everything can be replaced
//! or removed without knowing what an earlier run was told; a table is replaced in one transaction, so no packet meets half a set.

mod apply;
pub mod flags;
mod iptables;
mod netlink;
mod nft;
pub mod plan;
pub mod rules;

use std::process::ExitCode;

use osier_core::stdout;

use self::flags::Flags;
use self::plan::Capture;
use crate::settings::environment::Environment;

/// Wrong usage.
const USAGE: u8 = 2;

/// Does what the flags say, and says what it did.
pub fn main(flags: &Flags, environment: &Environment) -> ExitCode {
    let capture = match Capture::check(flags, environment) {
        Ok(capture) => capture,
        Err(mistakes) => {
            for mistake in mistakes.0 {
                eprintln!("osier-proxy init: {mistake}");
            }
            return ExitCode::from(USAGE);
        }
    };
    let done = match (flags.dry_run, flags.clean) {
        (true, _) => Ok(apply::dry_run(&capture, flags.backend)),
        (false, true) => apply::clean(&capture),
        (false, false) => apply::apply(&capture, flags.backend),
    };
    match done {
        Ok(text) => {
            stdout::print(format_args!("{text}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("osier-proxy init: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod golden_tests;
