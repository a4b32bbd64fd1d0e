//! The binary: words to settings, a runtime for housekeeping, and exit statuses. Everything else is `osier_proxy::app`.

mod allocator;

use std::process::ExitCode;

use clap::Parser as _;
use osier_core::logging::Logging;
use osier_proxy::settings::Settings;
use osier_proxy::settings::environment::Environment;
use osier_proxy::settings::raw::Raw;

/// Wrong usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // clap itself exits with 2 for wrong usage, and with 0 for --help and --version.
    let raw = Raw::parse();
    let settings = match Settings::check(raw, &Environment::of_process()) {
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

fn run(settings: Settings) -> anyhow::Result<()> {
    let logging = Logging::start("osier_proxy", settings.levels.clone(), settings.log_json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(osier_proxy::app::run(settings, logging))
}
