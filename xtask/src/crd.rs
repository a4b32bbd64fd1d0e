//! The definitions of Istio's kinds, made from its published API: `cargo xtask gen crds`.
//!
//! They say what an object may hold, for every version that Istio serves, so that the API server stores whole what people wrote for
//! Istio. What is wrong is refused by pilot's webhook, in the words of the checks that pilot itself goes by; so the rules that the
//! original carries beside its fields are left out, and its descriptions too.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::part;

/// The module of the API, with the version that is taken.
const MODULE: &str = "istio.io/api@v1.32.0";
/// Its definitions.
const SOURCE: &str = "kubernetes/customresourcedefinitions.gen.yaml";
/// Where ours are written, one file for each.
const FOLDER: &str = "deploy/charts/osier/crds";

/// Writes all of them anew.
pub fn generate() -> Result<()> {
    let source = download()?.join(SOURCE);
    let text =
        std::fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let folder = part::workspace().join(FOLDER);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("the definitions are no YAML")?;
    for mut definition in documents {
        let name = definition["metadata"]["name"].as_str().context("a definition has a name")?.to_owned();
        strip(&mut definition);
        definition["metadata"] = json!({
            "name": name,
            "labels": { "app.kubernetes.io/part-of": "osier" },
            // Removing the chart must not remove what people wrote.
            "annotations": { "helm.sh/resource-policy": "keep" },
        });
        write(&folder.join(format!("{name}.yaml")), &definition)?;
    }
    Ok(())
}

/// Folder of the module's source.
fn download() -> Result<PathBuf> {
    let go = part::find_program("go").context("needs Go: apt-get install golang-go")?;
    // Outside of any module.
    let done = Command::new(go).args(["mod", "download", "-json", MODULE]).current_dir("/").output()?;
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
    match answer["Dir"].as_str() {
        Some(folder) => Ok(folder.into()),
        None => bail!("cannot download {MODULE}: {}", String::from_utf8_lossy(&done.stderr).trim()),
    }
}

/// Takes texts for people, and rules in another language than the schema's, out of it. A field that is called `description` stays:
/// its value is a schema and no text.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| {
                !(key == "description" && value.is_string()) && key != "x-kubernetes-validations"
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn write(file: &Path, definition: &Value) -> Result<()> {
    let text = format!(
        "# Made by `cargo xtask gen crds` from {MODULE} (Apache-2.0).\n{}",
        serde_saphyr::to_string(definition)?
    );
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_and_texts_go() {
        let mut schema = json!({
            "description": "a text",
            "properties": { "description": { "type": "string", "description": "a text" } },
            "x-kubernetes-validations": [{ "rule": "true" }],
        });
        strip(&mut schema);
        assert_eq!(schema, json!({ "properties": { "description": { "type": "string" } } }));
    }
}
