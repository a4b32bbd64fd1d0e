//! `osier precheck`: whether a cluster can take the control plane, before anything is changed.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use osier_core::say;

use super::{apply, chart};
use crate::cluster::{Cluster, said};

/// Looks at a cluster and says what stands in the way of an installation. Exit status 1 if something does.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier precheck
  osier precheck --context production")]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Revision that is to be installed.
    #[arg(long, short = 'r', value_name = "NAME", default_value = "default")]
    revision: String,
}

/// Oldest Kubernetes that runs native sidecars without being asked to.
const OLDEST: (u32, u32) = (1, 29);

/// What an installation makes: group and resource.
const MADE: [(&str, &str); 9] = [
    ("", "namespaces"),
    ("", "configmaps"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];

/// What was found.
enum Finding {
    Good(String),
    Mind(String),
    Bad(String),
}

/// Runs all checks.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let client = arguments.cluster.client().await?;
    let mut findings = vec![version(&client).await?];
    findings.extend(nodes(&client).await?);
    findings.push(permissions(&client).await?);
    findings.push(definitions(&client).await?);
    findings.push(injectors(&client, &arguments.revision).await?);
    let mut bad = false;
    for finding in &findings {
        match finding {
            Finding::Good(text) => say!("✔ {text}"),
            Finding::Mind(text) => say!("! {text}"),
            Finding::Bad(text) => {
                bad = true;
                say!("✘ {text}");
            }
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn version(client: &Client) -> Result<Finding> {
    let version = client.apiserver_version().await.map_err(said)?;
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
    let found = (number(&version.major), number(&version.minor));
    Ok(if found >= OLDEST {
        Finding::Good(format!("Kubernetes {} runs native sidecars", version.git_version))
    } else {
        Finding::Bad(format!(
            "Kubernetes {} is too old: {}.{} is needed",
            version.git_version, OLDEST.0, OLDEST.1
        ))
    })
}

async fn nodes(client: &Client) -> Result<Vec<Finding>> {
    let api: Api<Node> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await.map_err(said)?;
    let other = |node: &Node| {
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        info.is_some_and(|info| info.operating_system != "linux")
    };
    let found = list.iter().filter(|node| other(node)).map(|node| {
        Finding::Mind(format!("node {} does not run Linux: pods on it can't have a sidecar", node.name_any()))
    });
    Ok(found.collect())
}

async fn permissions(client: &Client) -> Result<Finding> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (group, resource) in MADE {
        for verb in ["create", "patch"] {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        group: Some(group.into()),
                        resource: Some(resource.into()),
                        verb: Some(verb.into()),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = api.create(&PostParams::default(), &review).await.map_err(said);
            let answer = answer.context("cannot ask what you may do")?;
            if !answer.status.is_some_and(|status| status.allowed) {
                let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                missing.push(format!("{verb} {resource}{group}"));
            }
        }
    }
    Ok(if missing.is_empty() {
        Finding::Good("you may make everything that an installation consists of".into())
    } else {
        Finding::Bad(format!("you may not: {}", missing.join(", ")))
    })
}

async fn definitions(client: &Client) -> Result<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let (mut there, mut others, mut narrow) = (0, Vec::new(), Vec::new());
    for ours in chart::definitions()? {
        let name = ours["metadata"]["name"].as_str().unwrap_or_default();
        let Some(found) = api.get_opt(name).await.map_err(said)? else { continue };
        there += 1;
        if !apply::is_ours(found.labels()) {
            others.push(name.to_owned());
            let serves = |version: &str| found.spec.versions.iter().any(|v| v.served && v.name == version);
            let versions = ours["spec"]["versions"].as_array().into_iter().flatten();
            let lacking = versions.filter_map(|v| v["name"].as_str()).filter(|version| !serves(version));
            let lacking: Vec<&str> = lacking.collect();
            if !lacking.is_empty() {
                narrow.push(format!("{name} ({})", lacking.join(", ")));
            }
        }
    }
    Ok(match (there, others.is_empty(), narrow.is_empty()) {
        (0, ..) => Finding::Good("Istio's kinds are not defined yet; the installation defines them".into()),
        (_, true, _) => Finding::Good(format!("{there} of Istio's kinds are defined already, by Osier")),
        (_, false, true) => Finding::Good(format!(
            "{} of Istio's kinds are defined already, by somebody else; they stay as they are",
            others.len()
        )),
        (_, false, false) => Finding::Mind(format!(
            "Istio's kinds are defined by somebody else, without these versions: {}; people who write them have to use others",
            narrow.join(", ")
        )),
    })
}

/// Two injectors for one label would put two sidecars into a pod.
async fn injectors(client: &Client, revision: &str) -> Result<Finding> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await.map_err(said)?;
    let key = if revision == "default" { "istio-injection" } else { "istio.io/rev" };
    let value = if revision == "default" { "enabled" } else { revision };
    let claims = |configuration: &MutatingWebhookConfiguration| {
        configuration.webhooks.iter().flatten().any(|webhook| {
            let expressions = webhook.namespace_selector.as_ref().and_then(|s| s.match_expressions.as_ref());
            expressions.into_iter().flatten().any(|requirement| {
                requirement.key == key
                    && requirement.operator == "In"
                    && requirement.values.iter().flatten().any(|v| v == value)
            })
        })
    };
    let other =
        list.iter().find(|configuration| !apply::is_ours(configuration.labels()) && claims(configuration));
    Ok(match other {
        None => Finding::Good(format!("nobody else injects where {key}={value}")),
        Some(other) => Finding::Bad(format!(
            "{} injects where {key}={value} already: install Osier as another revision (--revision osier) beside it",
            other.name_any()
        )),
    })
}
