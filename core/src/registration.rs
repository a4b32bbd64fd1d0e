//! What a workload outside Kubernetes says of itself (`osier run`), carried in the xDS node's metadata.
//!
//! The proxy announces it with each stream; pilot turns it into a WorkloadEntry that lives as long as the stream, and ten
//! seconds longer. So a killed program leaves nothing behind, and a restarted pilot learns it again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::host::is_object_name;

/// Key in the node's metadata; the value is a [`Registration`] as a JSON string.
pub const METADATA_KEY: &str = "OSIER_REGISTER";

/// Port of the explicit HTTP proxy (`http_proxy`) on the workload's own address, in interception mode NONE.
pub const EXPLICIT_PROXY_PORT: u16 = 15007;

/// Port of the sidecar's admin interface on the workload's own address, as in a pod.
pub const ADMIN_PORT: u16 = 15000;

/// Port of the sidecar's readiness on the workload's own address, as in a pod.
pub const READINESS_PORT: u16 = 15021;

/// A workload that registers itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Registration {
    /// Name of the workload, unique in its namespace; also the name of the WorkloadEntry.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service that it belongs to: the label `app`.
    pub service: String,
    /// The label `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Further labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Address that belongs to this workload alone; its inbound listeners bind `<address>:<service port>`.
    pub address: IpAddr,
    /// Service account. Counts only on a stream that has proved it; those who have one take mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Port on 127.0.0.1 that the program itself listens on. Absent for a pure client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_port: Option<u16>,
}

impl Registration {
    /// What is wrong with it, if anything: names as Kubernetes has them, an address that one workload can have.
    pub fn check(&self) -> Result<(), String> {
        for (what, name) in [("name", &self.name), ("namespace", &self.namespace), ("service", &self.service)]
        {
            if !is_object_name(name, true) {
                let shown: String = name.chars().take(64).collect();
                return Err(format!(
                    "{what} {shown:?} is no name: lower-case letters, digits, hyphens and dots"
                ));
            }
        }
        let broadcast = self.address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        if self.address.is_unspecified() || self.address.is_multicast() || broadcast {
            return Err(format!("{} is no address of a workload", self.address));
        }
        if self.app_port == Some(0) {
            return Err("port 0 is no port of a program".into());
        }
        Ok(())
    }

    /// All labels of the WorkloadEntry: the given ones, with `app` and `version` unless they are given.
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.entry("app".into()).or_insert_with(|| self.service.clone());
        if let Some(version) = &self.version {
            labels.entry("version".into()).or_insert_with(|| version.clone());
        }
        labels
    }

    /// Where the workload's explicit HTTP proxy listens.
    pub fn explicit_proxy(&self) -> SocketAddr {
        SocketAddr::new(self.address, EXPLICIT_PROXY_PORT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Registration {
        Registration {
            name: "web-1".into(),
            namespace: "default".into(),
            service: "web".into(),
            version: Some("v1".into()),
            labels: BTreeMap::new(),
            address: [127, 64, 0, 1].into(),
            service_account: None,
            app_port: Some(8080),
        }
    }

    #[test]
    fn labels_given_by_hand_win() {
        let labels = [("app".to_owned(), "other".to_owned())].into();
        let registration = Registration { labels, ..web() };
        let labels = registration.all_labels();
        assert_eq!((labels["app"].as_str(), labels["version"].as_str()), ("other", "v1"));
        let json = serde_json::to_string(&registration).unwrap();
        assert_eq!(serde_json::from_str::<Registration>(&json).unwrap(), registration);
    }

    #[test]
    fn what_nobody_can_be_is_refused() {
        let good = web();
        assert_eq!(good.check(), Ok(()));
        for (wrong, says) in [
            (Registration { name: "a\nb".into(), ..good.clone() }, "name \"a\\nb\" is no name"),
            (Registration { namespace: String::new(), ..good.clone() }, "namespace \"\" is no name"),
            (Registration { service: "Bad_Name".into(), ..good.clone() }, "service \"Bad_Name\" is no name"),
            (Registration { address: [0, 0, 0, 0].into(), ..good.clone() }, "0.0.0.0 is no address"),
            (Registration { address: [224, 0, 0, 1].into(), ..good.clone() }, "224.0.0.1 is no address"),
            (Registration { address: [255; 4].into(), ..good.clone() }, "255.255.255.255 is no address"),
            (Registration { app_port: Some(0), ..good.clone() }, "port 0"),
        ] {
            let said = wrong.check().unwrap_err();
            assert!(said.contains(says), "{said:?} is not {says:?}");
        }
    }
}
