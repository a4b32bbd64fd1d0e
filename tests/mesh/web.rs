//! The service that most of these tests use: `web`, in versions v1 and v2, each behind a sidecar, and a client beside it.

use std::net::SocketAddr;

use osier_tests::backend::Backend;
use osier_tests::mesh::{Pilot, Sidecar, service, subsets};
use osier_tests::{process, wait};

/// The service, its processes, and a client.
pub struct Web {
    /// Sidecars of v1 and v2.
    pub servers: [Sidecar; 2],
    /// A workload that only asks.
    pub client: Sidecar,
    /// The control plane; the folder holds `service.yaml`, `subsets.yaml` and `rules.yaml`. Last, as the others write into it.
    pub pilot: Pilot,
    /// Port of the service.
    pub port: u16,
}

impl Web {
    /// Everything is running and `web` answers from v1 when this returns. `files` are further files of YAML.
    pub fn start(files: &[(&str, &str)], options: &[&str]) -> Self {
        let port = process::free_address().port();
        let (service, rules) = (service("web", "http", port), rules("v1"));
        let own = [("service.yaml", &*service), ("subsets.yaml", &subsets("web")), ("rules.yaml", &rules)];
        let pilot = Pilot::start(&[&own, files].concat(), options);
        let servers = ["v1", "v2"].map(|version| server(&pilot, version));
        let client = Sidecar::start(&pilot, "client", "v1", None);
        let web = Self { pilot, servers, client, port };
        web.wait_for("v1");
        web
    }

    /// The service as clients name it.
    pub fn host(&self) -> String {
        format!("web:{}", self.port)
    }

    /// Who answers now.
    pub fn ask(&self) -> String {
        self.client.ask(&self.host())
    }

    /// Waits until `version` answers.
    pub fn wait_for(&self, version: &str) {
        let mut last = String::new();
        wait::until(&format!("{version} answers"), || {
            last = self.ask();
            (last == version).then_some(())
        });
    }

    /// Whether a few requests to `port` are answered by both versions and by nobody else.
    pub fn is_balanced(&self, port: u16) -> bool {
        let answers: Vec<String> = (0..20).map(|_| self.client.ask(&format!("web:{port}"))).collect();
        let count = |version: &str| answers.iter().filter(|answer| *answer == version).count();
        count("v1") > 0 && count("v2") > 0 && count("v1") + count("v2") == answers.len()
    }

    /// Where endpoints of the service are, as pilot sees it.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let services = self.pilot.page("/debug/registryz");
        let of_web = services.as_array().into_iter().flatten();
        of_web
            .filter(|service| service["host"] == "web.default.svc.cluster.local")
            .flat_map(|service| service["ports"][0]["endpoints"].as_array().cloned().unwrap_or_default())
            .map(|endpoint| {
                let port = endpoint["port"].as_u64().and_then(|port| port.try_into().ok());
                let address = endpoint["address"].as_str().and_then(|text| text.parse().ok());
                SocketAddr::new(address.expect("an address"), port.expect("a port"))
            })
            .collect()
    }
}

/// A backend of this version with its sidecar.
pub fn server(pilot: &Pilot, version: &str) -> Sidecar {
    let backend = Backend::start(version);
    Sidecar::start(pilot, "web", version, Some(backend.address))
}

/// Everything to one version.
pub fn rules(version: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: web
  namespace: default
spec:
  hosts:
  - web
  http:
  - route:
    - destination:
        host: web
        subset: {version}
      weight: 100
    timeout: 5s
"
    )
}
