//! What an installation shall be: the chart's values, overlaid by a file and by single settings.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use super::chart;

/// Flags that change values; as Helm's and istioctl's.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Chosen {
    /// One value, as `pilot.replicaCount=2`; may be repeated.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// File of values; may be repeated, later ones win.
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Name of this control plane beside another.
    #[arg(long, short = 'r', value_name = "NAME", value_parser = check_name)]
    pub revision: Option<String>,
}

impl Chosen {
    /// What was chosen, over what was chosen before (`earlier`). Not yet with the chart's own values.
    pub fn overlay(&self, earlier: Value) -> Result<Value> {
        let mut chosen = earlier;
        for file in &self.files {
            merge(&mut chosen, read(file)?);
        }
        for setting in &self.set {
            let (path, text) =
                setting.split_once('=').with_context(|| format!("--set {setting}: is not PATH=VALUE"))?;
            let value = serde_saphyr::from_str(text).unwrap_or_else(|_| Value::from(text));
            put(&mut chosen, path, value).with_context(|| format!("--set {setting}"))?;
        }
        if let Some(revision) = &self.revision {
            let revision = if revision == "default" { "" } else { revision };
            put(&mut chosen, "revision", revision.into())?;
        }
        Ok(chosen)
    }
}

/// The chart's values with `chosen` over them; names what the chart doesn't know.
pub fn complete(chosen: &Value) -> Result<Value> {
    chart::check(chosen)?;
    let mut values: Value = serde_saphyr::from_str(chart::DEFAULTS).context("the chart's values")?;
    merge(&mut values, chosen.clone());
    Ok(values)
}

/// A revision or a tag: part of object names and a label's value, so it must be able to be both.
pub fn check_name(name: &str) -> Result<String, String> {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match osier_core::host::is_label(name) && name.bytes().all(lower) {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} must be lower-case letters, digits and hyphens, 63 at most")),
    }
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let value: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", file.display()))?;
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(value),
        _ => bail!("{}: values are a mapping", file.display()),
    }
}

/// Mappings are merged, everything else is replaced, null takes a value away: as Helm does.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

fn put(values: &mut Value, path: &str, value: Value) -> Result<()> {
    let mut at = values;
    for key in path.split('.') {
        if key.is_empty() {
            bail!("the path {path:?} has an empty part");
        }
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(fields) = at else { bail!("{path}: a part of it is no mapping") };
        at = fields.entry(key).or_insert(Value::Null);
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chosen(set: &[&str]) -> Result<Value> {
        let set = set.iter().map(|s| (*s).to_owned()).collect();
        Chosen { set, ..Chosen::default() }.overlay(json!({}))
    }

    #[test]
    fn names_of_revisions_and_tags_can_be_part_of_objects() {
        assert!(check_name("prod-stable").is_ok());
        for wrong in ["", "Prod", "a b", "a.b", "-a", "a_b", &"a".repeat(64)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_reach_the_chart() {
        let values =
            chosen(&["pilot.replicaCount=2", "global.tag=1.2", "meshConfig.accessLogFile=/dev/stdout"]);
        let values = complete(&values.unwrap());
        // 1.2 is a number in YAML, and a tag is text.
        assert_eq!(values.unwrap_err().to_string(), "global.tag: must be string, not 1.2");
        let values = complete(&chosen(&["pilot.replicaCount=2", "global.tag='1.2'"]).unwrap()).unwrap();
        assert_eq!(values["pilot"]["replicaCount"], 2);
        assert_eq!(values["global"]["tag"], "1.2");
        assert_eq!(values["global"]["hub"], "osier");
    }

    #[test]
    fn what_is_no_value_is_named() {
        for (setting, wanted) in [
            ("pilot.replicaCountt=2", "pilot.replicaCountt: there is no such value"),
            ("pilot.replicaCount=many", "pilot.replicaCount: must be integer, not \"many\""),
            ("pilot.replicaCount=-1", "pilot.replicaCount: -1 is less than 0"),
            ("global.imagePullPolicy=Sometimes", "global.imagePullPolicy: \"Sometimes\" is none of"),
        ] {
            let error = complete(&chosen(&[setting]).unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
        assert!(chosen(&["pilot"]).unwrap_err().to_string().contains("PATH=VALUE"));
        assert!(chosen(&["pilot..x=1"]).is_err());
    }
}
