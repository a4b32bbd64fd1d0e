//! Where the certificate authority of `osier up` keeps its keys, and how `osier run` proves by them who its workload is.
//!
//! A folder for each control plane, by the address of its xDS, in the user's own state. Both ends find it by that address.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use osier_pilot::ca::local::{Local, ROOT};
use osier_pilot::xds::identity::Identity;

/// Longer than anybody leaves a terminal open: the programs of `osier run` have nobody who would renew it.
const TOKEN_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a sidecar needs to prove who it is.
#[derive(Debug, Clone)]
pub struct Proof {
    /// Where encrypted xDS is served.
    pub pilot: SocketAddr,
    /// Root certificate by which pilot is known.
    pub roots: PathBuf,
    /// Token of the workload.
    pub token: PathBuf,
}

/// The folder of the control plane whose xDS is at `pilot`.
pub fn folder(pilot: SocketAddr) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let state = state.unwrap_or_else(std::env::temp_dir);
    state.join("osier").join(format!("pilot-{}", pilot.to_string().replace([':', '[', ']'], "-")))
}

/// Proof for a workload; `None` where that control plane gives no certificates.
pub fn proof(folder: &std::path::Path, workload: &str, identity: &Identity) -> Result<Option<Proof>> {
    if !folder.exists() {
        return Ok(None);
    }
    let local = Local::open(folder)?;
    let Some(pilot) = local.address() else { return Ok(None) };
    let token = local.tokens()?.mint(identity, TOKEN_LIFE)?;
    let name = format!("token-{workload}");
    local.write(&name, token.as_bytes()).context("cannot keep the workload's token")?;
    Ok(Some(Proof { pilot, roots: local.file(ROOT), token: local.file(&name) }))
}
