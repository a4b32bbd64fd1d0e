//! `osier up`: a control plane on the user's own folder of YAML.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use osier_pilot::ca::local::Local;

use crate::identity;

/// Runs pilot on a folder of Kubernetes and Istio YAML, until Ctrl-C.
///
/// The folder is watched: a saved file is in force at once, a broken one keeps what was.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier up ./mesh
  osier up ./mesh --xds-address 127.0.0.1:25010 --monitoring-address 127.0.0.1:25014")]
pub struct Arguments {
    /// Folder of YAML.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Address to serve xDS on.
    #[arg(long, env = "OSIER_PILOT_XDS_ADDRESS", value_name = "IP:PORT", default_value = "127.0.0.1:15010")]
    xds_address: SocketAddr,
    /// Address to serve metrics, readiness and debug pages on.
    #[arg(
        long,
        env = "OSIER_PILOT_MONITORING_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:15014"
    )]
    monitoring_address: SocketAddr,
    /// Address to serve encrypted xDS and certificates on. `osier run` finds it by itself.
    #[arg(
        long,
        env = "OSIER_PILOT_ENCRYPTED_XDS_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:0"
    )]
    encrypted_xds_address: SocketAddr,
    /// No certificates: workloads speak plaintext with each other.
    #[arg(long)]
    plaintext: bool,
    /// Loopback address to change log levels at (`osier admin log --admin-address`). [default: none]
    #[arg(long, env = "OSIER_PILOT_ADMIN_ADDRESS", value_name = "IP:PORT")]
    admin_address: Option<SocketAddr>,
}

/// Beside the YAML: who is registered, so that a restarted pilot knows it.
pub const STATE_FILE: &str = ".osier-registrations.json";

/// Runs pilot in this process.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.folder.is_file() {
        bail!("{} is a file: give the folder that it lies in", arguments.folder.display());
    }
    if !arguments.folder.is_dir() {
        bail!("{} is not a folder: make it and put your YAML there", arguments.folder.display());
    }
    eprintln!("osier: pilot on {}; start programs with", arguments.folder.display());
    eprintln!("  osier run --pilot {} --service NAME --port P -- COMMAND", arguments.xds_address);
    let state = arguments.folder.join(STATE_FILE);
    let mut command = vec![
        OsString::from("osier-pilot"),
        "--source".into(),
        arguments.folder.into(),
        "--state-file".into(),
        state.into(),
        "--xds-address".into(),
        arguments.xds_address.to_string().into(),
        "--monitoring-address".into(),
        arguments.monitoring_address.to_string().into(),
    ];
    let identity = identity::folder(arguments.xds_address);
    if arguments.plaintext {
        // Of a control plane that ran here before.
        if identity.exists() {
            Local::open(&identity)?.forget_address();
        }
    } else {
        let address = arguments.encrypted_xds_address.to_string();
        command.extend(["--encrypted-xds-address".into(), address.into()]);
        command.extend(["--identity-folder".into(), identity.into()]);
    }
    if let Some(address) = arguments.admin_address {
        command.extend(["--admin-address".into(), address.to_string().into()]);
    }
    Ok(osier_pilot::program::main(command))
}
