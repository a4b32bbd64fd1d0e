//! Templates by name: ours, and parts of pods that whoever runs the mesh writes.

use serde_json::{Value, json};

use super::merge::unknown_directive;
use super::pod::Pod;
use crate::source::decode::decode;
use crate::source::yaml;

/// Beside an application.
pub(super) const SIDECAR: &str = "sidecar";
/// A proxy by itself.
pub(super) const GATEWAY: &str = "gateway";

/// Reads a template of one's own.
pub(super) fn custom(name: &str, text: &str) -> Result<Value, String> {
    if [SIDECAR, GATEWAY].contains(&name) {
        return Err("is the name of a template that is built in".into());
    }
    if let Some(at) = text.lines().position(|line| line.contains("{{")) {
        return Err(format!(
            "line {}: Go template actions ({{{{ }}}}) are not supported; write plain YAML that is merged into the pod",
            at + 1
        ));
    }
    let documents = yaml::parse(text).map_err(|e| format!("line {}: {e}", e.line))?;
    let mut fragment: Value = match documents.as_slice() {
        [] => json!({}),
        [node] => decode(node).map_err(|e| format!("line {}: {e}", e.line))?,
        [_, second, ..] => return Err(format!("line {}: has more than one document", second.line)),
    };
    let Some(fields) = fragment.as_object_mut() else {
        return Err("must be a mapping with metadata and spec".into());
    };
    if let Some(other) = fields.keys().find(|key| !["metadata", "spec"].contains(&key.as_str())) {
        return Err(format!("{other}: unknown field; a template has metadata and spec"));
    }
    fields.entry("spec").or_insert_with(|| json!({}));
    if let Some(problem) = unknown_directive(&fragment) {
        return Err(problem);
    }
    Pod::new(fragment).map(Pod::into_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_template_is_refused() {
        for (name, text, wanted) in [
            ("gateway", "spec: {}", "is the name of a template that is built in"),
            (
                "a",
                "spec:\n  x: {{ .Values.y }}",
                "line 2: Go template actions ({{ }}) are not supported; write plain YAML that is merged into the pod",
            ),
            ("a", "spec: {}\n---\nspec: {}", "line 3: has more than one document"),
            ("a", "[]", "must be a mapping with metadata and spec"),
            ("a", "kind: Pod", "kind: unknown field; a template has metadata and spec"),
            ("a", "spec: {containers: [{image: x}]}", "spec.containers[0]: the field name is required"),
            ("a", "spec: {$retainKeys: [a]}", "the directive $retainKeys is not supported"),
        ] {
            assert_eq!(custom(name, text).unwrap_err(), wanted, "{text}");
        }
        assert_eq!(custom("a", "").unwrap(), json!({"spec": {}}));
        assert_eq!(custom("a", "metadata: {labels: {a: b}}").unwrap()["spec"], json!({}));
    }
}
