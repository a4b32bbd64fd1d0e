//! What made a Pod: the workload that people know by name.

/// An object that makes Pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Kind, e.g. `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl Owner {
    /// What made this owner, as far as names and the labels of its Pod tell: the Deployment of a ReplicaSet, the CronJob of a Job.
    pub fn made_by<'l>(self, label: impl Fn(&str) -> Option<&'l str>) -> Self {
        let of = |api_version: &str, kind: &str, name: &str| Self {
            api_version: api_version.into(),
            kind: kind.into(),
            name: name.into(),
        };
        let without = |key: &str| self.name.strip_suffix(label(key)?)?.strip_suffix('-');
        match self.kind.as_str() {
            "ReplicaSet" => {
                if let Some(name) = without("rollouts-pod-template-hash") {
                    return of("argoproj.io/v1alpha1", "Rollout", name);
                }
                if let Some(name) = without("pod-template-hash") {
                    return of("apps/v1", "Deployment", name);
                }
            }
            "ReplicationController" => {
                if let Some(name) = label("deploymentconfig") {
                    return of("apps.openshift.io/v1", "DeploymentConfig", name);
                }
            }
            "Job" => {
                // a CronJob ends the names of its Jobs in the time, in minutes or seconds since 1970
                let scheduled = self.name.rsplit_once('-').filter(|(_, time)| {
                    (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit())
                });
                if let Some((name, _)) = scheduled {
                    return of("batch/v1", "CronJob", name);
                }
            }
            _ => {}
        }
        self
    }
}
