//! `osier describe pod|service`: what the mesh makes of one pod or Service, in words, and what is probably not meant.
//!
//! `mesh` reads everything as pilot does, with pilot's own code; `pod` and `service` say what follows from it, `refused` what of
//! the configuration isn't in force; `page` collects their lines.

mod mesh;
mod page;
mod pod;
mod refused;
mod service;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Service as Written;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use osier_core::stdout;

use crate::cluster::{ControlPlane, Scope, said};
use crate::pods::Name;
use mesh::View;
use page::Page;

/// Says what the mesh makes of a pod or a Service: its routes, subsets and policies, and what is wrong with them.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier describe pod shop-6d5f-x2x1z.default
  osier describe pod deployment/shop -n default
  osier describe service reviews.default")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum What {
    /// A pod, and the Services in front of it.
    #[command(visible_alias = "po")]
    Pod(Subject),
    /// A Service.
    #[command(visible_alias = "svc")]
    Service(Subject),
}

#[derive(clap::Args, Clone, Debug)]
struct Subject {
    /// NAME, NAME.NAMESPACE; for pods also deployment/NAME.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// Prints the description.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let page = match &arguments.what {
        What::Pod(subject) => of_pod(subject).await?,
        What::Service(subject) => of_service(subject).await?,
    };
    stdout::print(format_args!("{page}"));
    Ok(ExitCode::SUCCESS)
}

async fn of_pod(subject: &Subject) -> Result<Page> {
    let (client, namespace) = subject.scope.client().await?;
    let pod = Name::parse(&subject.name, &namespace)?.pod(&client).await?;
    let revision = pod.annotations().get("istio.io/rev").map(String::as_str);
    let view = View::read(&client, &subject.control_plane, revision).await?;
    let services = services(&client, &pod.namespace().unwrap_or_default()).await?;
    let mut page = Page::default();
    pod::describe(&mut page, &view, &pod, &services);
    Ok(page)
}

async fn of_service(subject: &Subject) -> Result<Page> {
    let (client, namespace) = subject.scope.client().await?;
    let (name, namespace) = subject.name.rsplit_once('.').unwrap_or((&subject.name, &namespace));
    let name = name.strip_prefix("service/").or_else(|| name.strip_prefix("svc/")).unwrap_or(name);
    let api: Api<Written> = Api::namespaced(client.clone(), namespace);
    let written = api.get_opt(name).await.map_err(said)?;
    let written = written.with_context(|| format!("there is no service {namespace}/{name}"))?;
    let view = View::read(&client, &subject.control_plane, None).await?;
    let mut page = Page::default();
    service::describe(&mut page, &view, &written, None);
    Ok(page)
}

async fn services(client: &Client, namespace: &str) -> Result<Vec<Written>> {
    let api: Api<Written> = Api::namespaced(client.clone(), namespace);
    Ok(api.list(&ListParams::default()).await.map_err(said)?.items)
}
