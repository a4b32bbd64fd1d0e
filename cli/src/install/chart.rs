//! The Helm chart, inside of this program, and its templates filled in as Helm does.
//!
//! The chart is the one place that says what an installation consists of. Its templates keep to the part of Helm's language that is
//! here (Go templates, `toYaml`, `indent`, `quote`, `int`); a test holds what comes out against Helm's own output.

use anyhow::{Context as _, Result, bail};
use gtmpl::{FuncError, Template, Value as Cell};
use serde_json::{Value, json};

/// The chart's own values.
pub const DEFAULTS: &str = include_str!("../../../deploy/charts/osier/values.yaml");
/// What values may be.
const SCHEMA: &str = include_str!("../../../deploy/charts/osier/values.schema.json");

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../deploy/charts/osier/", $folder, "/", $name)))),*]
    };
}

/// Names that the templates share.
const NAMES: &str = include_str!("../../../deploy/charts/osier/templates/_names.tpl");

/// In the order in which they are applied.
const TEMPLATES: &[(&str, &str)] = files!("templates":
    "service-account.yaml",
    "cluster-role.yaml",
    "role.yaml",
    "config-map.yaml",
    "service.yaml",
    "deployment.yaml",
    "disruption-budget.yaml",
    "network-policy.yaml",
    "gateway.yaml",
    "mutating-webhook.yaml",
    "validating-webhook.yaml",
);

/// Istio's kinds.
const DEFINITIONS: &[(&str, &str)] = files!("crds":
    "authorizationpolicies.security.istio.io.yaml",
    "destinationrules.networking.istio.io.yaml",
    "envoyfilters.networking.istio.io.yaml",
    "gateways.networking.istio.io.yaml",
    "peerauthentications.security.istio.io.yaml",
    "proxyconfigs.networking.istio.io.yaml",
    "requestauthentications.security.istio.io.yaml",
    "serviceentries.networking.istio.io.yaml",
    "sidecars.networking.istio.io.yaml",
    "telemetries.telemetry.istio.io.yaml",
    "trafficextensions.extensions.istio.io.yaml",
    "virtualservices.networking.istio.io.yaml",
    "wasmplugins.extensions.istio.io.yaml",
    "workloadentries.networking.istio.io.yaml",
    "workloadgroups.networking.istio.io.yaml",
);

/// The definitions of Istio's kinds.
pub fn definitions() -> Result<Vec<Value>> {
    DEFINITIONS.iter().map(|(name, text)| parse(name, text)).collect()
}

/// Everything else, filled in.
pub fn render(namespace: &str, values: &Value) -> Result<Vec<Value>> {
    let context = json!({
        "Values": values,
        "Release": { "Namespace": namespace, "Name": "osier", "Service": "Helm" },
        "Chart": { "Name": "osier", "Version": env!("CARGO_PKG_VERSION"), "AppVersion": env!("CARGO_PKG_VERSION") },
    });
    let mut objects = Vec::new();
    for (name, text) in TEMPLATES {
        let filled = fill(&format!("{NAMES}{text}"), &context).with_context(|| format!("template {name}"))?;
        for document in filled.split("\n---\n").filter(|text| !text.trim().is_empty()) {
            objects.push(parse(name, document)?);
        }
    }
    Ok(objects)
}

/// Says what is wrong with values: unknown names and wrong kinds, by their paths.
pub fn check(values: &Value) -> Result<()> {
    let schema: Value = serde_json::from_str(SCHEMA).context("the chart's schema")?;
    let mut wrong = Vec::new();
    compare("", values, &schema, &mut wrong);
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// The part of JSON Schema that the chart's schema keeps to.
fn compare(path: &str, value: &Value, schema: &Value, wrong: &mut Vec<String>) {
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let fits = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => value.is_number(),
    };
    if !kinds.is_empty() && !kinds.iter().any(fits) {
        wrong.push(format!("{path}: must be {}, not {value}", kinds.join(" or ")));
    }
    if let Some(choice) = schema["enum"].as_array().filter(|choice| !choice.contains(value)) {
        let choice: Vec<String> = choice.iter().map(ToString::to_string).collect();
        wrong.push(format!("{path}: {value} is none of {}", choice.join(", ")));
    }
    if let Some(least) = schema["minimum"].as_f64()
        && value.as_f64().is_some_and(|number| number < least)
    {
        wrong.push(format!("{path}: {value} is less than {least}"));
    }
    for (key, below) in value.as_object().into_iter().flatten() {
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => wrong.push(format!("{here}: there is no such value")),
            (Value::Null, _) => {}
            (schema, _) => compare(&here, below, schema, wrong),
        }
    }
}

fn parse(name: &str, text: &str) -> Result<Value> {
    serde_saphyr::from_str(text).with_context(|| format!("{name} is no YAML:\n{text}"))
}

fn fill(text: &str, context: &Value) -> Result<String> {
    let mut template = Template::default();
    template.add_funcs(&[
        ("toYaml", to_yaml as gtmpl::Func),
        ("indent", indent),
        ("quote", quote),
        ("int", |arguments| one(arguments).cloned()),
    ]);
    template.parse(text)?;
    Ok(template.render(&gtmpl::Context::from(cell(context)))?)
}

fn one(arguments: &[Cell]) -> Result<&Cell, FuncError> {
    arguments.last().ok_or_else(|| FuncError::Generic("an argument is missing".into()))
}

fn to_yaml(arguments: &[Cell]) -> Result<Cell, FuncError> {
    let text = serde_saphyr::to_string(&json_of(one(arguments)?));
    let text = text.map_err(|error| FuncError::Generic(error.to_string()))?;
    Ok(Cell::from(text.trim_end().to_owned()))
}

fn quote(arguments: &[Cell]) -> Result<Cell, FuncError> {
    Ok(Cell::from(format!("{:?}", one(arguments)?.to_string())))
}

fn indent(arguments: &[Cell]) -> Result<Cell, FuncError> {
    let [Cell::Number(width), text] = arguments else {
        return Err(FuncError::Generic("indent takes a number and a text".into()));
    };
    let width = width.as_u64().and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let text = text.to_string();
    let lines: Vec<String> = text.lines().map(|line| format!("{:width$}{line}", "")).collect();
    Ok(Cell::from(lines.join("\n")))
}

/// JSON as the template engine has it.
fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Nil,
        Value::Bool(value) => Cell::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Cell::from(whole),
            (None, number) => Cell::from(number.unwrap_or_default()),
        },
        Value::String(text) => Cell::from(text.clone()),
        Value::Array(items) => Cell::Array(items.iter().map(cell).collect()),
        Value::Object(fields) => {
            Cell::Object(fields.iter().map(|(key, value)| (key.clone(), cell(value))).collect())
        }
    }
}

/// And back.
fn json_of(cell: &Cell) -> Value {
    match cell {
        Cell::Bool(value) => (*value).into(),
        Cell::String(text) => text.as_str().into(),
        Cell::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, number) => number.into(),
        },
        Cell::Array(items) => items.iter().map(json_of).collect(),
        Cell::Object(fields) | Cell::Map(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), json_of(value))).collect()
        }
        _ => Value::Null,
    }
}
