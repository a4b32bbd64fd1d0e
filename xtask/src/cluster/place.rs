//! Where the cluster is: its addresses, its names, and the one folder that holds its state.
//!
//! All that listens does so on the cluster's own bridge or on a loopback address of its own, never on an address of the machine's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;

/// The node's name.
pub const NODE: &str = "osier";
/// The bridge that pods hang on.
pub const BRIDGE: &str = "osier0";
/// The bridge's address: the node's, the API server's, and the pods' gateway.
pub const NODE_ADDRESS: &str = "10.244.0.1";
/// Pods, with room for a thousand.
pub const PODS: &str = "10.244.0.0/22";
/// Prefix length of [`PODS`].
pub const PODS_PREFIX: u8 = 22;
/// ClusterIPs.
pub const SERVICES: &str = "10.96.0.0/16";
/// First ClusterIP: the API server's.
pub const API_SERVICE: &str = "10.96.0.1";
/// ClusterIP of the name service.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// First three numbers of the load balancer's addresses, 10.97.0.0/24.
pub const BALANCER: [u8; 3] = [10, 97, 0];
/// ClusterIPs and load balancer addresses together: what is routed to the bridge.
pub const VIRTUAL: &str = "10.96.0.0/15";
/// A loopback address that nobody else uses: etcd listens on it, and where nothing may be found, nothing listens on it.
pub const LOOPBACK: &str = "127.10.244.1";
/// DNS domain of the cluster.
pub const DOMAIN: &str = "cluster.local";

/// The folder of the cluster's state.
pub struct Place {
    folder: PathBuf,
}

impl Place {
    /// The one on this machine, in the project's cache folder.
    pub fn open() -> Result<Self> {
        let folder = cache::folder()?.join("cluster");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file or folder of the cluster's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text, for configuration files and arguments.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What users and tests give to kubectl and osier.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("pki/admin.kubeconfig")
    }

    /// A program of the cluster's, by the name that chooses the component.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// Writes a file and the folders above it.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path(name);
        let parent = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }
}
