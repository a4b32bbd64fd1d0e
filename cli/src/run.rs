//! `osier run`: a user's program with a sidecar beside it, registered in the mesh while it runs.
//!
//! Each workload gets an address of its own in 127.0.0.0/8, which needs no root: its inbound listeners, its explicit HTTP
//! proxy, its admin interface and its readiness live there, so any number of sidecars fit on one machine.
//! On the way out the sidecar drains first; the program is ended after it.

mod forward;
mod workload;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

pub use workload::{Workload, WorkloadSpec};

use crate::{identity, process};

/// Runs your program with a sidecar beside it and registers it as a workload of the mesh.
///
/// The program keeps listening on 127.0.0.1:PORT; others reach it under its service's name, through their own sidecars.
/// It gets `http_proxy` and `no_proxy`, so plain HTTP goes through its sidecar; `--forward` is for everything else.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier run --service reviews --version v2 --port 9080 -- ./reviews --listen 127.0.0.1:9080
  osier run --service shop --port 8080 --label tier=web -- python3 -m http.server 8080 --bind 127.0.0.1
  osier run --service worker --port 9000 --forward 6379=cache.default.svc.cluster.local:6379 -- ./worker")]
pub struct Arguments {
    /// Service that the program belongs to (label `app`); its Service lies in the folder of `osier up`.
    #[arg(long, value_name = "NAME")]
    service: String,
    /// Version (label `version`).
    #[arg(long, value_name = "V", default_value = "v1")]
    version: String,
    /// Port on 127.0.0.1 that the program listens on; also given to it as PORT.
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Namespace.
    #[arg(long, value_name = "N", default_value = "default")]
    namespace: String,
    /// Service account: who the workload is to others. [default: the service's name]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// No certificate: the workload speaks plaintext with others.
    #[arg(long)]
    plaintext: bool,
    /// Further label; may be given several times.
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Forward 127.0.0.1:LOCALPORT to HOST:PORT through the mesh; may be given several times.
    #[arg(long = "forward", value_name = "LOCALPORT=HOST:PORT")]
    forwards: Vec<forward::Forward>,
    /// Where pilot serves xDS.
    #[arg(long, env = "OSIER_PILOT_ADDRESS", value_name = "IP:PORT", default_value = "127.0.0.1:15010")]
    pilot: SocketAddr,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long the sidecar may take to drain.
const DRAIN: Duration = Duration::from_secs(15);

/// Runs the program to its end; the exit status is the program's own.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let spec = WorkloadSpec {
        service_account: arguments.service_account.unwrap_or_else(|| arguments.service.clone()),
        identity_folder: (!arguments.plaintext).then(|| identity::folder(arguments.pilot)),
        service: arguments.service,
        version: Some(arguments.version),
        namespace: arguments.namespace,
        labels: arguments.labels.into_iter().collect(),
        app_port: Some(arguments.port),
        pilot: arguments.pilot,
        log: None,
    };
    let mut workload = tokio::select! {
        started = Workload::start(&spec) => started?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
    };
    for forward in &arguments.forwards {
        forward.start(workload.explicit_proxy()).await?;
    }
    eprintln!(
        "osier: {} is in the mesh as {} ({}); http_proxy=http://{}",
        spec.service,
        workload.name(),
        workload.address(),
        workload.explicit_proxy()
    );
    let mut program = process::internal(&["exec", "--"])?
        .args(&arguments.command)
        .envs(workload.environment())
        .env("PORT", arguments.port.to_string())
        .process_group(0)
        .spawn()?;
    let ended = tokio::select! {
        status = program.wait() => Some(status?),
        status = workload.sidecar_ended() => {
            process::end(&mut program, DRAIN).await;
            bail!("the sidecar ended unexpectedly ({status}); its messages are above");
        }
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if let Some(signal) = ended.and_then(|status| status.signal()) {
        eprintln!("osier: the program was ended by signal {signal}");
    }
    workload.leave(DRAIN).await;
    let status = match ended {
        Some(status) => status,
        None => {
            process::signal(&program, Signal::SIGTERM);
            match tokio::time::timeout(DRAIN, program.wait()).await {
                Ok(status) => status?,
                Err(_) => {
                    program.kill().await?;
                    program.wait().await?
                }
            }
        }
    };
    Ok(exit_code(status))
}

/// The program's own code; 128 + signal as shells do.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".into()),
    }
}
