//! Security policies. What can't be enforced fails closed, so a check never drops a policy that could refuse something: with an
//! error it covers what can be read of it, and its whole namespace where that is nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use osier_core::labels::Labels;

use super::{Check, Context, Path, Problem};
use crate::model::{Coverage, Demand, MutualTls, SecurityPolicy};
use crate::store::schema::destination_rule::WorkloadSelector;
use crate::store::schema::security as schema;

/// A policy, unless it can't refuse anything, and what there is to say about it. Any error makes it fail closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The policy.
    pub policy: Option<Arc<SecurityPolicy>>,
    /// Everything that there is to say.
    pub problems: Vec<Problem>,
}

/// Reads a PeerAuthentication.
pub fn peer_authentication(context: &Context, spec: &schema::PeerAuthentication) -> Read {
    let mut check = Check::new(context);
    let covers = check.coverage(spec.selector.as_ref());
    let mode = spec.mtls.and_then(mode);
    let at = ROOT.field("portLevelMtls");
    check.require(spec.port_level_mtls.is_empty() || covers != Coverage::Namespace, at, || {
        "needs a selector with labels".into()
    });
    let mut ports = BTreeMap::new();
    for (port, tls) in &spec.port_level_mtls {
        match port.parse().ok().filter(|port| *port > 0) {
            Some(number) => ports.extend(mode_of_port(*tls, mode).map(|mode| (number, mode))),
            None => check.error(at.key(port), format!("{port:?} is no port number (1 to 65535)")),
        }
    }
    check.read(covers, Demand::MutualTls { mode, ports })
}

/// Where their fields are.
pub(super) const ROOT: Path<'static> = Path::Root("spec");

fn mode(tls: schema::MutualTls) -> Option<MutualTls> {
    match tls.mode? {
        schema::MutualTlsMode::Unset => None,
        schema::MutualTlsMode::Disable => Some(MutualTls::Disable),
        schema::MutualTlsMode::Permissive => Some(MutualTls::Permissive),
        schema::MutualTlsMode::Strict => Some(MutualTls::Strict),
    }
}

/// A port that says nothing has the mode of the others.
fn mode_of_port(tls: schema::MutualTls, others: Option<MutualTls>) -> Option<MutualTls> {
    mode(tls).or(others)
}

impl Check<'_> {
    fn coverage(&mut self, selector: Option<&WorkloadSelector>) -> Coverage {
        let written = selector.map(|s| &s.match_labels).filter(|labels| !labels.is_empty());
        let Some(written) = written else { return Coverage::Namespace };
        let before = self.problems.len();
        let at = ROOT.field("selector");
        let labels: Labels = self.selector(at.field("matchLabels"), written);
        // a selector with an error in it can't be trusted to say whom it means
        if self.problems.len() == before { Coverage::Workloads(labels) } else { Coverage::Namespace }
    }

    /// Whom a policy covers that may name gateways or services instead; `None`: no sidecar.
    pub(super) fn covers(&mut self, selector: Option<&WorkloadSelector>, targets: bool) -> Option<Coverage> {
        if targets && selector.is_none() {
            self.warn(ROOT.field("targetRefs"), "covers gateways and waypoints only, and there are none yet");
            return None;
        }
        if targets {
            self.error(ROOT.field("targetRefs"), "contradicts selector");
            return Some(Coverage::Namespace);
        }
        Some(self.coverage(selector))
    }

    /// The same in words.
    pub(super) fn whom(&self, covers: &Coverage) -> &'static str {
        match covers {
            Coverage::Workloads(_) => "the workloads that it selects",
            Coverage::Namespace | Coverage::Mesh => "all workloads of its namespace",
        }
    }

    /// Nothing comes of it.
    pub(super) fn without_effect(self) -> Read {
        Read { policy: None, problems: self.problems }
    }

    /// What comes of it.
    pub(super) fn read(self, covers: Coverage, demands: Demand) -> Read {
        let (key, age) = (self.context.key.clone(), self.context.age.clone());
        let finished = self.finish(SecurityPolicy { key: key.clone(), age, covers: covers.clone(), demands });
        let policy = finished.value.map_or_else(|| SecurityPolicy::unreadable(key, covers), Arc::new);
        Read { policy: Some(policy), problems: finished.problems }
    }
}
