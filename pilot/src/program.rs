//! The program `osier-pilot`: settings, logging, signals, and [`app`]. A function, so that `osier` can be it as well.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use osier_core::logging::{self, Logging};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::settings::Settings;

/// Whose log it is, and the parts whose level can be set. What watches say is told by `source`, in words that help.
pub const LOG: logging::Program = logging::Program {
    own: "osier_pilot",
    parts: &["app", "inject", "kubernetes", "push", "source", "store", "webhook", "xds"],
    silent: &["kube_runtime"],
};

/// Runs the program with its whole command line, program name first. Wrong usage ends the process with status 2.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match start(Settings::parse_from(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("osier-pilot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> anyhow::Result<()> {
    let logging = Logging::start(LOG, LOG.levels(&settings.log)?, settings.log_json)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(wait_for_signal(shutdown.clone(), settings.shutdown_delay));
        Ok(app::run(settings, logging, shutdown).await?)
    })
}

/// SIGTERM and SIGINT end the program politely: SIGTERM after a delay, which SIGINT or a second SIGTERM ends. One more ends it at once.
async fn wait_for_signal(shutdown: CancellationToken, delay: Duration) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::warn!("signals can't be caught; the program ends without saying goodbye");
    };
    tokio::select! {
        _ = terminate.recv() => {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("told again, ending at once");
    std::process::exit(1);
}
