//! The program `osier-proxy`: words to settings, a runtime for housekeeping, exit statuses. Everything else is [`app`].
//! A function, so that `osier` can be it as well.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use osier_core::logging::{self, Logging};

use crate::settings::Settings;
use crate::settings::environment::Environment;
use crate::settings::raw::{Raw, RawMode, Tool};
use crate::status::tools;
use crate::{agent, app, capture};

/// Wrong usage or configuration.
const USAGE: u8 = 2;

/// Whose log it is, and the parts whose level can be set.
pub const LOG: logging::Program = logging::Program {
    own: "osier_proxy",
    parts: &[
        "admin",
        "agent",
        "app",
        "bootstrap",
        "compile",
        "config",
        "http",
        "identity",
        "listener",
        "status",
        "tcp",
        "telemetry",
        "upstream",
        "worker",
        "xds",
    ],
    silent: &[],
};

/// Runs the program with its whole command line, program name first. Wrong usage ends the process with status 2.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // clap itself exits with 2 for wrong usage, and with 0 for --help and --version.
    let raw = Raw::parse_from(arguments);
    let environment = Environment::of_process();
    match &raw.mode {
        Some(RawMode::Tool(tool)) => return run_tool(tool, &environment),
        Some(RawMode::Agent(flags)) => return agent::main(flags, &environment),
        _ => {}
    }
    let settings = match Settings::check(raw, &environment) {
        Ok(settings) => settings,
        Err(mistakes) => {
            for mistake in mistakes.0 {
                eprintln!("osier-proxy: {mistake}");
            }
            return ExitCode::from(USAGE);
        }
    };
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("osier-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_tool(tool: &Tool, environment: &Environment) -> ExitCode {
    match tool {
        Tool::Init(flags) => capture::main(flags, environment),
        Tool::Request(flags) => tools::request(flags),
        Tool::Wait(flags) => tools::wait(flags),
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    let logging = Logging::start(LOG, settings.levels.clone(), settings.log_json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(app::run(settings, logging))
}
