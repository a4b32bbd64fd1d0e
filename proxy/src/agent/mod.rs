//! `osier-proxy agent`: certificates for who can't get them from the mesh alone, an Envoy or a gRPC application on the same machine.
//!
//! It gets the workload's certificate as a sidecar does (`identity`) and hands it on: over SDS on a Unix domain socket ([`sds`]), and, where
//! a folder is given, as files for gRPC's `file_watcher` ([`folder`]). Files that Envoy asks for by name go the same way. It carries nobody's traffic.
//!
//! Whoever can open the socket or read the folder has the workload's key. The socket is for its user and its group (mode 0660: containers
//! of a pod have a group in common), the key in the folder for the user alone (0600, in a folder of 0700).

pub mod files;
pub mod flags;
pub mod folder;
pub mod sds;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use osier_core::logging::{Levels, Logging};
use osier_core::readiness::Readiness;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap::XdsServer;
use crate::config::snapshot::SharedSnapshot;
use crate::identity::renewal::Renewal;
use crate::identity::request::Pem;
use crate::program::LOG;
use crate::settings::environment::Environment;
use flags::Flags;
use folder::Folder;

/// Wrong usage.
const USAGE: u8 = 2;

/// What an agent was told, checked.
#[derive(Debug)]
pub struct Settings {
    /// Who certifies.
    pub authority: XdsServer,
    /// Where SDS is served.
    pub socket: PathBuf,
    /// Where files are written.
    pub folder: Option<Folder>,
    /// What to log.
    pub levels: Levels,
    /// Log as JSON.
    pub log_json: bool,
}

/// The certificate in force, as text; `None` before the first one.
pub type Current = watch::Receiver<Option<Arc<Pem>>>;

/// Runs an agent until it is told to end.
pub fn main(flags: &Flags, environment: &Environment) -> ExitCode {
    let settings = match flags.check(environment) {
        Ok(settings) => settings,
        Err(mistakes) => {
            for mistake in mistakes.0 {
                eprintln!("osier-proxy agent: {mistake}");
            }
            return ExitCode::from(USAGE);
        }
    };
    match start(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("osier-proxy agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> anyhow::Result<()> {
    let _logging = Logging::start(LOG, settings.levels.clone(), settings.log_json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(settings))
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    let (issued, current) = watch::channel(None);
    let socket = sds::bind(&settings.socket).with_context(|| settings.socket.display().to_string())?;
    tracing::info!(socket = %settings.socket.display(), "SDS is served");
    let writing = settings.folder.map(|folder| tokio::spawn(folder::keep(folder, current.clone())));
    // Nobody asks whether an agent is ready: those that it serves wait for what they ask.
    let first = Readiness::default().wait_for("a certificate");
    let renewal = Renewal {
        server: settings.authority,
        secrets: Arc::default(),
        own: Arc::default(),
        snapshot: SharedSnapshot::default(),
        as_text: true,
    };
    let renewing = renewal.run(first, move |certificate| {
        issued.send_replace(certificate.pem.clone());
    });
    let ended = tokio::select! {
        () = renewing => Ok(()),
        served = sds::serve(socket, current, Arc::default()) => served.context("SDS"),
        written = wait(writing) => written.context("the folder can't be written"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // Who finds no socket knows at once that nobody serves.
    let _ = std::fs::remove_file(&settings.socket);
    ended
}

/// The end of a task; where there is none, for ever.
async fn wait(task: Option<tokio::task::JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    match task {
        Some(task) => task.await.map_err(std::io::Error::other)?,
        None => std::future::pending().await,
    }
}
