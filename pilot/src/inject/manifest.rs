//! Injection into YAML that people apply: pods, and whatever has a template of them.
//!
//! What isn't injected comes out as it went in, to the letter; what is injected is written anew, without its comments.

use serde_json::Value;

use super::{Injector, Refusal, Request};
use crate::model::Owner;
use crate::source::decode::decode;
use crate::source::yaml;

/// YAML with proxies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The YAML.
    pub text: String,
    /// What there is to say about it, each with its resource.
    pub notes: Vec<String>,
}

/// Why YAML can't be injected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is none.
    #[error("line {line}: {message}")]
    Yaml {
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A pod is refused.
    #[error("{resource} (line {line}): {refusal}")]
    Refused {
        /// Kind and name.
        resource: String,
        /// Where its document begins.
        line: usize,
        /// Why.
        refusal: Refusal,
    },
}

/// Injects into all documents of `text`.
pub fn inject(injector: &Injector, text: &str) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest { text: String::new(), notes: Vec::new() };
    let mut line = 1;
    for piece in documents(text) {
        match document(injector, piece, line, &mut manifest.notes)? {
            None => manifest.text.push_str(piece),
            Some(yaml) => {
                if piece.starts_with("---") {
                    manifest.text.push_str("---\n");
                }
                manifest.text.push_str(&yaml);
                if ends(piece.lines().last().unwrap_or_default()) {
                    manifest.text.push_str("...\n");
                }
            }
        }
        line += piece.lines().count();
    }
    Ok(manifest)
}

/// Whether a line is YAML's marker of a document's end.
fn ends(line: &str) -> bool {
    line.trim_end() == "..." || line.starts_with("... ")
}

/// The text in pieces of one document, each with the markers that it begins and ends with.
fn documents(text: &str) -> Vec<&str> {
    let marker = |line: &str| line.trim_end() == "---" || line.starts_with("--- ");
    let mut starts = vec![0];
    let mut at = 0;
    let mut ended = false;
    for line in text.split_inclusive('\n') {
        if (marker(line) || ended) && at > 0 {
            starts.push(at);
        }
        ended = ends(line);
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| &text[*start..end]).collect()
}

/// One document; `None` where it stays as it is.
fn document(
    injector: &Injector,
    piece: &str,
    line: usize,
    notes: &mut Vec<String>,
) -> Result<Option<String>, ManifestError> {
    let wrong = |at: u32, message: String| {
        let within = usize::try_from(at).unwrap_or_default().max(1) - 1;
        ManifestError::Yaml { line: line + within, message }
    };
    let nodes = yaml::parse(piece).map_err(|e| wrong(e.line, e.message))?;
    let node = match nodes.as_slice() {
        [] => return Ok(None),
        [node] => node,
        [_, second, ..] => return Err(wrong(second.line, "a second document begins without ---".into())),
    };
    let mut object: Value = decode(node).map_err(|e| wrong(e.line, e.to_string()))?;
    let line = line + usize::try_from(node.line).unwrap_or_default().max(1) - 1;
    if !resource(injector, &mut object, line, notes)? {
        return Ok(None);
    }
    let written = serde_saphyr::to_string(&object).map_err(|e| wrong(1, e.to_string()))?;
    Ok(Some(written))
}

/// Injects into one resource, or the items of a list. Whether anything changed.
fn resource(
    injector: &Injector,
    object: &mut Value,
    line: usize,
    notes: &mut Vec<String>,
) -> Result<bool, ManifestError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    if kind.ends_with("List") && object["items"].is_array() {
        let mut changed = false;
        for item in object["items"].as_array_mut().into_iter().flatten() {
            changed |= resource(injector, item, line, notes)?;
        }
        return Ok(changed);
    }
    let owner =
        Owner { api_version: text(&object["apiVersion"]), name: text(&object["metadata"]["name"]), kind };
    let namespace = text(&object["metadata"]["namespace"]);
    let Some(path) = template_of(&owner.kind) else { return Ok(false) };
    let resource = format!("{} {}", owner.kind, owner.name);
    let Some(pod) = object.pointer_mut(path).filter(|pod| pod.is_object()) else {
        let refusal =
            Refusal(vec![format!("{}: is required", path.replace('/', ".").trim_start_matches('.'))]);
        return Err(ManifestError::Refused { resource, line, refusal });
    };
    let request = Request {
        pod: pod.clone(),
        namespace: if namespace.is_empty() { "default" } else { &namespace },
        made_by: (!path.is_empty()).then_some(owner),
        cluster: None,
        network: None,
    };
    let injected = injector.inject(request);
    let injected =
        injected.map_err(|refusal| ManifestError::Refused { resource: resource.clone(), line, refusal })?;
    notes.extend(injected.warnings.iter().map(|warning| format!("{resource}: {warning}")));
    match injected.outcome {
        Err(skipped) => {
            notes.push(format!("{resource} is not injected: {skipped}"));
            Ok(false)
        }
        Ok(made) if made == *pod => Ok(false),
        Ok(made) => {
            *pod = made;
            Ok(true)
        }
    }
}

/// Where a kind has its pod, as a JSON pointer.
fn template_of(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "",
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            "/spec/template"
        }
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "# kept\napiVersion: v1\nkind: Service\nmetadata: {name: a}   # to the letter\n";

    #[test]
    fn other_documents_pass_untouched() {
        let text = format!("{SERVICE}--- # two\n\n---\n{SERVICE}");
        assert_eq!(inject(&Injector::default(), &text).unwrap().text, text);
        let host =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true, containers: []}\n";
        let manifest = inject(&Injector::default(), host).unwrap();
        assert_eq!(manifest.text, host);
        assert_eq!(
            manifest.notes,
            ["Pod a is not injected: the pod uses the network of its node (hostNetwork)"]
        );
    }

    #[test]
    fn injecting_what_was_printed_changes_nothing() {
        let pod = "---\nkind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec: {containers: [{name: app, args: ['no', '0755', '*', ' x ', \"a\\nb\"]}]}\n";
        let text = format!("{SERVICE}{pod}---\n{SERVICE}");
        let once = inject(&Injector::default(), &text).unwrap();
        assert!(once.text.starts_with(&format!("{SERVICE}---\n")), "{}", once.text);
        assert!(once.text.ends_with(&format!("---\n{SERVICE}")));
        assert!(once.text.contains("istio-proxy"));
        assert_eq!(inject(&Injector::default(), &once.text).unwrap().text, once.text);
    }

    #[test]
    fn documents_that_say_where_they_end() {
        let pod = |name: &str| {
            format!("kind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: app}}]}}\n")
        };
        let text = format!("{SERVICE}...\n{}...\n# between\n{SERVICE}...\n---\n{}", pod("a"), pod("b"));
        let made = inject(&Injector::default(), &text).unwrap().text;
        let names: Vec<_> = yaml::parse(&made)
            .unwrap()
            .iter()
            .map(|n| n.get("metadata").unwrap().get("name").unwrap().text().unwrap().to_string())
            .collect();
        assert_eq!(names, ["a", "a", "a", "b"], "{made}");
        assert_eq!(made.matches("name: istio-proxy").count(), 2, "{made}");
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let broken = format!("{SERVICE}---\na: [\n");
        let Err(ManifestError::Yaml { line, .. }) = inject(&Injector::default(), &broken) else { panic!() };
        assert!((6..=8).contains(&line), "{line}");
        let refused = format!(
            "{SERVICE}---\n\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{template: {{metadata: {{annotations: {{sidecar.istio.io/proxyCPU: much}}}}, spec: {{containers: []}}}}}}\n"
        );
        assert_eq!(
            inject(&Injector::default(), &refused).unwrap_err().to_string(),
            "Deployment web (line 7): sidecar.istio.io/proxyCPU: \"much\" is no quantity such as 100m or 128Mi"
        );
        let none = "kind: Job\nmetadata: {name: a}\nspec: {}\n";
        assert_eq!(
            inject(&Injector::default(), none).unwrap_err().to_string(),
            "Job a (line 1): spec.template: is required"
        );
    }
}
