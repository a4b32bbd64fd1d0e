//! What an agent can be told on the command line, and what it comes to.

use std::path::PathBuf;

use clap::Args;
use osier_core::logging::Levels;

use super::Settings;
use super::folder::Folder;
use crate::bootstrap::XdsServer;
use crate::settings::environment::Environment;
use crate::settings::raw::Trust;
use crate::settings::{Mistakes, pilot_address};

/// Flags of `agent`.
#[derive(Args, Debug, Clone)]
pub struct Flags {
    /// The control plane's encrypted address, whose certificate authority is asked [default: discoveryAddress of PROXY_CONFIG].
    #[arg(long, env = "OSIER_PILOT_ADDRESS", value_name = "HOST:PORT")]
    pub pilot_address: Option<String>,

    /// How the control plane is known, and this workload to it.
    #[command(flatten)]
    pub trust: Trust,

    /// Unix domain socket on which SDS is served.
    #[arg(
        long,
        env = "OSIER_SDS_SOCKET",
        value_name = "PATH",
        default_value = "./var/run/secrets/workload-spiffe-uds/socket"
    )]
    pub socket: PathBuf,

    /// Folder in which certificate, key and roots are kept as files too (cert-chain.pem, key.pem, root-cert.pem), for gRPC's file_watcher.
    /// It must lie in memory (tmpfs): a key doesn't belong on a disk.
    #[arg(long, env = "OSIER_CERTIFICATE_FOLDER", value_name = "DIR")]
    pub folder: Option<PathBuf>,

    /// Write the key even where the folder lies on a disk.
    #[arg(long, env = "OSIER_KEY_ON_DISK", requires = "folder")]
    pub key_on_disk: bool,

    /// What to log on standard error: a level (off, error, warning, info, debug, trace), with exceptions per part.
    #[arg(long, env = "OSIER_LOG_LEVEL", value_name = "LEVELS", default_value = "info")]
    pub log_level: String,

    /// Log one JSON object a line.
    #[arg(long, env = "OSIER_LOG_JSON")]
    pub log_json: bool,
}

impl Flags {
    /// Checks what was said, with `environment` for what only variables say.
    pub fn check(&self, environment: &Environment) -> Result<Settings, Mistakes> {
        let mut mistakes = Vec::new();
        let target = pilot_address(self.pilot_address.as_deref(), environment, &mut mistakes);
        let tls = self.trust.tls();
        if tls.is_none() {
            mistakes.push("--pilot-root-file is needed: certificates come over TLS alone".to_owned());
        }
        let folder = match &self.folder {
            Some(path) => match Folder::open(path, self.key_on_disk) {
                Ok(folder) => Some(folder),
                Err(error) => {
                    mistakes.push(format!("--folder {}: {error}", path.display()));
                    None
                }
            },
            None => None,
        };
        let levels = self.log_level.parse::<Levels>();
        let levels = levels.map_err(|error| mistakes.push(format!("--log-level: {error}"))).ok();
        match (target, levels) {
            (Some(target), Some(levels)) if mistakes.is_empty() => Ok(Settings {
                authority: XdsServer::new(target, tls),
                socket: self.socket.clone(),
                folder,
                levels,
                log_json: self.log_json,
            }),
            _ => Err(Mistakes(mistakes)),
        }
    }
}
