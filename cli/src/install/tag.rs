//! `osier tag`: names that stand for a revision, so that namespaces need no new label when the revision changes.
//!
//! A tag is a webhook configuration: the revision's own, with selectors that look for the tag's name. The tag `default` takes
//! `istio-injection=enabled` as well; where the revision `default` is installed, its webhook is switched off for as long.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use osier_core::{say, stdout};
use osier_pilot::source::kubernetes::named;
use serde::Serialize;
use serde_json::{Value, json};

use super::apply;
use super::values::check_name;
use crate::cluster::{Cluster, said};
use crate::output::{self, Output};

/// The tag, and the revision, that holds where no other is named.
const DEFAULT: &str = "default";
/// A label that nothing has.
const OFF: &str = "istio.io/deactivated";

/// Manages revision tags: names of revisions, for the label istio.io/rev of namespaces and pods.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier tag set prod --revision canary
  osier tag set default --revision canary --overwrite
  osier tag list
  osier tag generate prod --revision canary > tag.yaml
  osier tag remove prod")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum What {
    /// Makes a tag, or points it at another revision.
    Set {
        #[command(flatten)]
        target: Target,
        /// The tag may be there already.
        #[arg(long)]
        overwrite: bool,
    },
    /// Prints what `set` would make.
    Generate {
        #[command(flatten)]
        target: Target,
    },
    /// Shows tags, their revisions, and the namespaces that use them.
    List {
        #[command(flatten)]
        cluster: Cluster,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Removes a tag.
    Remove {
        #[command(flatten)]
        cluster: Cluster,
        /// Name of the tag.
        #[arg(value_name = "TAG")]
        tag: String,
        /// Don't ask, though namespaces use it.
        #[arg(long, short = 'y')]
        skip_confirmation: bool,
    },
}

/// A tag and what it stands for.
#[derive(clap::Args, Clone, Debug)]
struct Target {
    #[command(flatten)]
    cluster: Cluster,
    /// Name of the tag.
    #[arg(value_name = "TAG", value_parser = check_name)]
    tag: String,
    /// Revision that it stands for.
    #[arg(long, short = 'r', value_name = "NAME")]
    revision: String,
}

/// `osier tag`.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.what {
        What::Set { target, overwrite } => set(&target, overwrite).await?,
        What::Generate { target } => {
            let client = target.cluster.client().await?;
            let object = of_revision(&client, &target).await?;
            stdout::print(format_args!("{}", serde_saphyr::to_string(&object)?));
        }
        What::List { cluster, output } => list(&cluster.client().await?, output).await?,
        What::Remove { cluster, tag, skip_confirmation } => {
            remove(&cluster.client().await?, &tag, skip_confirmation).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(target: &Target, overwrite: bool) -> Result<()> {
    let client = target.cluster.client().await?;
    let object = of_revision(&client, target).await?;
    let (tag, revision) = (&target.tag, &target.revision);
    if let Some(there) = apply::get(&client, &object).await? {
        let labels = there.labels();
        let before = labels.get("istio.io/rev").map_or("-", |revision| revision);
        if !apply::is_ours(labels) {
            bail!("tag {tag} belongs to another mesh (webhook {}): choose another name", there.name_any());
        }
        if !overwrite && before != revision {
            bail!("tag {tag} is there and stands for revision {before}: --overwrite points it at {revision}");
        }
    }
    // Off before on: a pod that nobody injects for a moment can be made anew, one with two sidecars is broken.
    if tag == DEFAULT
        && let Some(off) = switched_off(&client).await?
    {
        apply::apply(&client, &off, false).await?;
    }
    apply::apply(&client, &object, false).await?;
    say!(
        "✔ tag {tag} stands for revision {revision}; `kubectl label namespace NAME istio.io/rev={tag} --overwrite` lets a namespace use it"
    );
    Ok(())
}

/// Webhook configurations of ours that `selector` selects.
async fn ours(client: &Client, selector: &str) -> Result<Vec<MutatingWebhookConfiguration>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let list = api.list(&ListParams::default().labels(&format!("{},{selector}", apply::PART_OF))).await;
    Ok(list.map_err(said).context("cannot list webhooks")?.items)
}

/// The configuration that makes a tag.
async fn of_revision(client: &Client, target: &Target) -> Result<Value> {
    let Target { tag, revision, .. } = target;
    let revisions = ours(client, "istio.io/rev,!istio.io/tag").await?;
    let names = || {
        let names: Vec<&str> =
            revisions.iter().filter_map(|r| r.labels().get("istio.io/rev")).map(|r| &**r).collect();
        if names.is_empty() {
            "none is installed".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        }
    };
    let of =
        |wanted: &str| revisions.iter().find(|r| r.labels().get("istio.io/rev").is_some_and(|r| r == wanted));
    let Some(own) = of(revision) else { bail!("there is no revision {revision} ({})", names()) };
    if tag == revision || (tag != DEFAULT && of(tag).is_some()) {
        bail!("{tag} is a revision already, so it can't be a tag");
    }
    let own = serde_json::to_value(own)?;
    configuration(tag, revision, &own["webhooks"]).with_context(|| {
        format!("webhook {} has no entries to copy", named("osier-sidecar-injector", revision))
    })
}

/// The tag's configuration, from the entries of a revision. `None` if it has none.
fn configuration(tag: &str, revision: &str, webhooks: &Value) -> Option<Value> {
    let model = webhooks.as_array()?.first()?;
    let mut kinds = vec!["rev.namespace", "rev.object"];
    if tag == DEFAULT {
        kinds.extend(["namespace", "object"]);
    }
    let entries: Vec<Value> = kinds.into_iter().filter_map(|kind| entry(model, kind, tag)).collect();
    Some(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": object_name(tag),
            "labels": {
                "app": "osier-pilot",
                "app.kubernetes.io/name": "osier-pilot",
                "app.kubernetes.io/part-of": "osier",
                "istio.io/rev": revision,
                "istio.io/tag": tag,
            },
        },
        "webhooks": entries,
    }))
}

fn object_name(tag: &str) -> String {
    format!("istio-revision-tag-{tag}")
}

/// One entry, with the selectors of its kind. `None` for a kind that isn't known.
fn entry(model: &Value, kind: &str, tag: &str) -> Option<Value> {
    let is = |key: &str, value: &str| json!({ "key": key, "operator": "In", "values": [value] });
    let not = |key: &str| json!({ "key": key, "operator": "DoesNotExist" });
    let not_off = || json!({ "key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"] });
    let (namespace, object) = match kind {
        "rev.namespace" => (vec![is("istio.io/rev", tag), not("istio-injection")], vec![not_off()]),
        "rev.object" => {
            (vec![not("istio.io/rev"), not("istio-injection")], vec![not_off(), is("istio.io/rev", tag)])
        }
        "namespace" => (vec![is("istio-injection", "enabled")], vec![not_off()]),
        "object" => (
            vec![not("istio-injection"), not("istio.io/rev")],
            vec![is("sidecar.istio.io/inject", "true"), not("istio.io/rev")],
        ),
        _ => return None,
    };
    let mut entry = model.clone();
    entry["name"] = format!("{kind}.{SUFFIX}").into();
    entry["namespaceSelector"] = json!({ "matchExpressions": namespace });
    entry["objectSelector"] = json!({ "matchExpressions": object });
    Some(entry)
}

/// What names of entries end in.
const SUFFIX: &str = "sidecar-injector.osier.io";

/// The webhook of the revision `default` with selectors that select nothing. `None` if that revision isn't there.
async fn switched_off(client: &Client) -> Result<Option<Value>> {
    Ok(default_webhook(client).await?.map(|mut object| {
        switch_off(&mut object);
        object
    }))
}

/// Selectors that select nothing for every entry.
pub fn switch_off(configuration: &mut Value) {
    for entry in configuration["webhooks"].as_array_mut().into_iter().flatten() {
        for selector in ["namespaceSelector", "objectSelector"] {
            entry[selector] = json!({ "matchLabels": { OFF: "never-match" }, "matchExpressions": [] });
        }
    }
}

/// The webhook of the revision `default` as it is, ready to be applied.
async fn default_webhook(client: &Client) -> Result<Option<Value>> {
    let found = ours(client, &format!("istio.io/rev={DEFAULT},!istio.io/tag")).await?.into_iter().next();
    let Some(found) = found else { return Ok(None) };
    let metadata = json!({ "name": found.name_any(), "labels": found.labels() });
    Ok(Some(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": metadata,
        "webhooks": serde_json::to_value(&found.webhooks)?,
    })))
}

/// The selectors that entries of a revision have when they are on. Entries of other kinds stay as they are.
fn switch_on(configuration: &mut Value) {
    for webhook in configuration["webhooks"].as_array_mut().into_iter().flatten() {
        let name = webhook["name"].as_str().unwrap_or_default().to_owned();
        let kind = name.strip_suffix(SUFFIX).map(|kind| kind.trim_end_matches('.'));
        if let Some(on) = kind.and_then(|kind| entry(webhook, kind, DEFAULT)) {
            *webhook = on;
        }
    }
}

/// Lets a rendered configuration of the revision `default` be off where the tag `default` stands for another revision.
pub async fn respect_default(client: &Client, object: &mut Value) -> Result<()> {
    let of_default = object["kind"] == "MutatingWebhookConfiguration"
        && object["metadata"]["labels"]["istio.io/rev"] == DEFAULT;
    if of_default && !ours(client, &format!("istio.io/tag={DEFAULT}")).await?.is_empty() {
        switch_off(object);
    }
    Ok(())
}

/// One line of `tag list`.
#[derive(Debug, Serialize)]
struct Listed {
    tag: String,
    revision: String,
    namespaces: Vec<String>,
}

async fn list(client: &Client, format: Output) -> Result<()> {
    let namespaces = namespaces(client).await?;
    let label = |configuration: &MutatingWebhookConfiguration, key: &str| {
        configuration.labels().get(key).cloned().unwrap_or_default()
    };
    let tags = ours(client, "istio.io/tag").await?;
    let mut tags: Vec<Listed> = tags
        .iter()
        .map(|configuration| {
            let tag = label(configuration, "istio.io/tag");
            let namespaces = users(&namespaces, &tag);
            Listed { tag, revision: label(configuration, "istio.io/rev"), namespaces }
        })
        .collect();
    tags.sort_by(|a, b| a.tag.cmp(&b.tag));
    match format {
        Output::Table if tags.is_empty() => say!("There is no tag; `osier tag set` makes one."),
        Output::Table => say!("{}", table(&tags)),
        format => output::print(&tags, format)?,
    }
    Ok(())
}

fn table(tags: &[Listed]) -> String {
    let mut table = output::table(&["TAG", "REVISION", "NAMESPACES"]);
    for Listed { tag, revision, namespaces } in tags {
        table.add_row([tag.clone(), revision.clone(), namespaces.join(",")]);
    }
    output::text(&table)
}

/// Labels of each namespace.
async fn namespaces(client: &Client) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await.map_err(said).context("cannot list namespaces")?;
    Ok(list.into_iter().map(|namespace| (namespace.name_any(), namespace.labels().clone())).collect())
}

/// Namespaces whose pods a tag injects.
fn users(namespaces: &BTreeMap<String, BTreeMap<String, String>>, tag: &str) -> Vec<String> {
    let uses = |labels: &BTreeMap<String, String>| match labels.get("istio-injection").map(|value| &**value) {
        Some("enabled") => tag == DEFAULT,
        Some(_) => false,
        None => labels.get("istio.io/rev").is_some_and(|revision| revision == tag),
    };
    namespaces.iter().filter(|(_, labels)| uses(labels)).map(|(name, _)| name.clone()).collect()
}

async fn remove(client: &Client, tag: &str, sure: bool) -> Result<()> {
    if ours(client, &format!("istio.io/tag={tag}")).await?.is_empty() {
        bail!("there is no tag {tag}: `osier tag list` shows those that are");
    }
    let default = if tag == DEFAULT { default_webhook(client).await? } else { None };
    let users = users(&namespaces(client).await?, tag);
    if default.is_none() && !users.is_empty() && !sure {
        let namespaces = users.join(", ");
        if !std::io::stdin().is_terminal() {
            bail!(
                "tag {tag} is used by {namespaces}: pods that are made there would get no sidecar; --skip-confirmation removes it all the same"
            );
        }
        stdout::print(format_args!(
            "Tag {tag} is used by {namespaces}: pods that are made there will get no sidecar. Remove it? [y/N] "
        ));
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            say!("Nothing was changed.");
            return Ok(());
        }
    }
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": object_name(tag) },
    });
    apply::delete(client, &object).await?;
    if let Some(mut own) = default {
        switch_on(&mut own);
        apply::apply(client, &own, false).await?;
        say!("✔ tag {tag} is removed; revision {DEFAULT} holds again");
    } else {
        say!("✔ tag {tag} is removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{chart, values};

    /// What the chart makes for a revision.
    fn rendered(revision: &str) -> Value {
        let mut values = values::complete(&json!({ "revision": revision })).expect("values");
        values["global"]["istioNamespace"] = "osier-system".into();
        let objects = chart::render("osier-system", &values).expect("the chart");
        let found = objects.into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration");
        found.expect("the chart has an injector")
    }

    fn by_name(configuration: &Value) -> BTreeMap<String, (Value, Value)> {
        let entries = configuration["webhooks"].as_array().expect("webhooks").iter();
        entries
            .map(|e| {
                let name = e["name"].as_str().expect("a name").to_owned();
                (name, (e["namespaceSelector"].clone(), e["objectSelector"].clone()))
            })
            .collect()
    }

    #[test]
    fn selectors_are_the_charts() {
        // The tag `default` selects what the revision `default` selects.
        let (default, canary) = (rendered(""), rendered("canary"));
        let tag = configuration(DEFAULT, "canary", &canary["webhooks"]).expect("a tag");
        assert_eq!(by_name(&tag), by_name(&default));
        let prod = configuration("canary", "other", &rendered("other")["webhooks"]).expect("a tag");
        assert_eq!(by_name(&prod), by_name(&canary));
        let service = &tag["webhooks"][0]["clientConfig"]["service"];
        assert_eq!(service["name"], "osier-pilot-canary");
        assert_eq!(tag["metadata"]["labels"]["istio.io/rev"], "canary");
        assert_eq!(tag["metadata"]["name"], "istio-revision-tag-default");
    }

    #[test]
    fn the_default_revision_is_off_and_on_again() {
        let before = rendered("");
        let mut object = before.clone();
        switch_off(&mut object);
        let off = by_name(&object);
        assert!(off.values().all(|(ns, o)| ns["matchLabels"][OFF] == "never-match" && o == ns), "{off:?}");
        switch_on(&mut object);
        assert_eq!(by_name(&object), by_name(&before));
    }

    #[test]
    fn namespaces_use_a_tag_by_either_label() {
        let labels =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let namespaces = BTreeMap::from([
            ("a".to_owned(), labels(&[("istio.io/rev", "prod")])),
            ("b".to_owned(), labels(&[("istio-injection", "enabled"), ("istio.io/rev", "prod")])),
            ("c".to_owned(), labels(&[("istio-injection", "disabled"), ("istio.io/rev", "prod")])),
            ("d".to_owned(), labels(&[("istio.io/rev", "default")])),
            ("e".to_owned(), labels(&[])),
        ]);
        assert_eq!(users(&namespaces, "prod"), ["a"]);
        assert_eq!(users(&namespaces, "default"), ["b", "d"]);
        let tags = [Listed {
            tag: "prod".into(),
            revision: "canary".into(),
            namespaces: vec!["a".into(), "f".into()],
        }];
        assert_eq!(table(&tags), "TAG   REVISION  NAMESPACES\nprod  canary    a,f");
    }
}
