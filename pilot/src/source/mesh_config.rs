//! The mesh configuration: YAML inside of a YAML text, of which what is known and not applied is set aside.

use super::decode::{DecodeError, closest, decode};
use super::yaml::{Entry, Node, Value, parse};
use crate::model::{Kind, MeshConfig, Severity};
use crate::store::check::mesh::{ROOT, check};
use crate::store::check::{Checked, Context, Problem};
use crate::store::schema::kubernetes::ConfigMap;
use crate::store::schema::mesh::{APPLIED_IN_PART, Loss, SET_ASIDE, SetAside};

/// Reads the ConfigMap.
pub(super) fn read(context: &Context, node: &Node) -> Result<Checked<MeshConfig>, DecodeError> {
    let object: ConfigMap = decode(node)?;
    let Some(text) = object.data.get("mesh") else {
        return Err(DecodeError { path: ROOT.into(), line: node.line, message: "is required".into() });
    };
    let inside = |path: &str, line: u32, message: String| DecodeError {
        path: if path.is_empty() { ROOT.into() } else { format!("{ROOT}.{path}") },
        line: node.line_of(ROOT) + line,
        message,
    };
    of_text(context, text).map_err(|e| inside(&e.path, e.line, e.message))
}

/// Holds the text of a mesh configuration against everything that pilot will: all that is wrong with it, each with its field.
pub fn check_text(text: &str) -> Result<(), Vec<String>> {
    let context = Context::new(Kind::MeshConfig, "", "istio", 0, &"cluster.local".into());
    let problems = match of_text(&context, text) {
        Ok(checked) => checked.problems,
        Err(error) => return Err(vec![format!("line {}: {error}", error.line)]),
    };
    let wrong = problems.into_iter().filter(|problem| problem.severity == Severity::Error);
    let said =
        |p: Problem| format!("{}: {}", p.field.trim_start_matches(ROOT).trim_start_matches('.'), p.message);
    let wrong: Vec<String> = wrong.map(said).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Reads the text; errors have their line in it, and their path without that of the ConfigMap.
fn of_text(context: &Context, text: &str) -> Result<Checked<MeshConfig>, DecodeError> {
    let whole = |line, message| DecodeError { path: String::new(), line, message };
    let mut documents = parse(text).map_err(|e| whole(e.line, e.message))?;
    let mut problems = Vec::new();
    let spec = match documents.as_mut_slice() {
        [] => Default::default(),
        [one] => set_aside(one, "", &mut problems).and_then(|()| decode(one))?,
        [_, second, ..] => return Err(whole(second.line, "has more than one document".into())),
    };
    let mut checked = check(context, &spec);
    checked.problems.extend(problems);
    Ok(checked)
}

/// Line of a field of the mesh configuration, which is in the text of its ConfigMap.
pub(super) fn line_of(node: &Node, field: &str) -> u32 {
    let text = node.get("data").and_then(|data| data.get("mesh")).and_then(Node::text);
    let (Some(inner), Some(text)) = (field.strip_prefix(ROOT), text) else { return node.line_of(field) };
    let line = parse(text).ok().and_then(|documents| documents.first().map(|d| d.line_of(inner)));
    node.line_of(ROOT) + line.unwrap_or(0)
}

/// Takes the fields out that are known and not applied. `prefix` is where in the configuration `node` is, with a dot at its end.
fn set_aside(node: &mut Node, prefix: &str, problems: &mut Vec<Problem>) -> Result<(), DecodeError> {
    let Value::Map(entries) = &mut node.value else { return Ok(()) };
    let mut kept = Vec::with_capacity(entries.len());
    for mut entry in std::mem::take(entries) {
        let path = format!("{prefix}{}", entry.key);
        let below = format!("{path}.");
        if let Some(row) = SET_ASIDE.iter().find(|row| row.field == path) {
            problems.extend(warning(row, &entry.node));
        } else if SET_ASIDE.iter().any(|row| row.field.starts_with(&below)) {
            set_aside(&mut entry.node, &below, problems)?;
            if APPLIED_IN_PART.contains(&&*path) {
                kept.push(entry);
            } else {
                refuse_rest(&entry, &below)?;
            }
        } else {
            kept.push(entry);
        }
    }
    *entries = kept;
    Ok(())
}

/// Of a field whose fields are all set aside nothing may be left.
fn refuse_rest(entry: &Entry, below: &str) -> Result<(), DecodeError> {
    let wrong = |path: String, line, message| Err(DecodeError { path, line, message });
    match &entry.node.value {
        Value::Null => Ok(()),
        Value::Map(rest) => match rest.first() {
            None => Ok(()),
            Some(unknown) => {
                let known: Vec<&str> =
                    SET_ASIDE.iter().filter_map(|row| row.field.strip_prefix(below)).collect();
                let message = match closest(&unknown.key, &known) {
                    Some(name) => format!("unknown field, did you mean {name}?"),
                    None => "unknown field".to_owned(),
                };
                wrong(format!("{below}{}", unknown.key), unknown.line, message)
            }
        },
        _ => {
            let message = format!("must be a mapping, not {}", entry.node.describe());
            wrong(below.trim_end_matches('.').to_owned(), entry.line, message)
        }
    }
}

fn warning(row: &SetAside, value: &Node) -> Option<Problem> {
    (row.loss == Loss::Something && asks_for_something(value)).then(|| Problem {
        field: format!("{ROOT}.{}", row.field),
        message: format!("is not applied: {}", row.why),
        severity: Severity::Warning,
    })
}

/// False for what is switched off or empty.
fn asks_for_something(value: &Node) -> bool {
    match &value.value {
        Value::Null | Value::Bool(false, _) => false,
        Value::Text(text) => !text.is_empty(),
        Value::Seq(items) => !items.is_empty(),
        Value::Map(entries) => entries.iter().any(|entry| asks_for_something(&entry.node)),
        Value::Bool(true, _) | Value::Int(..) | Value::Float(..) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{OutboundTraffic, TlsVersion};

    /// The configuration, if it is applied, and what is said.
    fn read_text(mesh: &str) -> (Option<MeshConfig>, Vec<String>) {
        let indented: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio}}\ndata:\n  mesh: |\n{indented}"
        );
        let node = parse(&yaml).unwrap().remove(0);
        let context = Context::new(Kind::MeshConfig, "", "istio", 0, &Arc::from("cluster.local"));
        match read(&context, &node) {
            Ok(checked) => {
                let shown = |p: &Problem| {
                    format!("{} {:?} {}: {}", line_of(&node, &p.field), p.severity, p.field, p.message)
                };
                (checked.value, checked.problems.iter().map(shown).collect())
            }
            Err(error) => (None, vec![format!("{} {error}", error.line)]),
        }
    }

    /// What Istio's own installation writes.
    #[test]
    fn the_configuration_of_a_fresh_istio_is_taken_without_a_word() {
        let (mesh, said) = read_text(
            "accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
defaultProviders:
  metrics:
  - prometheus
enablePrometheusMerge: true
extensionProviders:
- envoyOtelAls:
    port: 4317
    service: opentelemetry-collector.observability.svc.cluster.local
  name: otel
rootNamespace: root
trustDomain: example.org
",
        );
        let mesh = mesh.unwrap();
        assert_eq!((&*mesh.root_namespace, &*mesh.trust_domain), ("root", "example.org"));
        assert_eq!(mesh.access_log_file.as_deref(), Some("/dev/stdout"));
        assert_eq!(said, [""; 0]);
    }

    #[test]
    fn trust_domains_that_are_accounts_of_a_cloud_are_read_as_names_have_them() {
        let (mesh, _) = read_text("trustDomain: mesh@project.iam\ntrustDomainAliases: [old@project.iam]\n");
        let mesh = mesh.unwrap();
        assert_eq!(mesh.trust_domains().collect::<Vec<_>>(), ["mesh.project.iam", "old.project.iam"]);
    }

    #[test]
    fn what_is_not_applied_is_named_and_the_rest_is_in_force() {
        let (mesh, said) = read_text(
            "outboundTrafficPolicy: {mode: REGISTRY_ONLY}
defaultConfig:
  tracing:
    sampling: 10
meshMTLS: {minProtocolVersion: TLSV1_3, cipherSuites: [AES128-SHA]}
enableAutoMtls: false
",
        );
        let mesh = mesh.unwrap();
        assert_eq!(mesh.outbound, OutboundTraffic::RegistryOnly);
        assert_eq!((mesh.least_tls, mesh.auto_mutual_tls), (TlsVersion::Tls13, false));
        assert_eq!(
            said,
            [
                "8 Warning data.mesh.defaultConfig.tracing: is not applied: there is no tracing yet",
                "10 Warning data.mesh.meshMTLS.cipherSuites: is not applied: only suites with forward secrecy and authenticated encryption are spoken, and all of them",
            ]
        );
    }

    #[test]
    fn each_field_that_is_set_aside() {
        for row in SET_ASIDE {
            let nested = |value: &str| match row.field.split_once('.') {
                Some((outer, inner)) => format!("{outer}: {{{inner}: {value}}}"),
                None => format!("{}: {value}", row.field),
            };
            for (value, asks) in [
                ("true", true),
                ("{a: {b: 1}}", true),
                ("[x]", true),
                ("false", false),
                ("{a: {}, b: ''}", false),
                ("", false),
            ] {
                let (mesh, said) = read_text(&nested(value));
                assert_eq!(mesh, Some(MeshConfig::default()), "{} {value}", row.field);
                let warned = asks && row.loss == Loss::Something;
                assert_eq!(said.len(), usize::from(warned), "{} {value}: {said:?}", row.field);
            }
        }
        assert!(SET_ASIDE.is_sorted_by_key(|row| row.field), "in order, each once");
    }

    #[test]
    fn what_nobody_knows_refuses_all() {
        for (text, wanted) in [
            ("rootNamespce: x", "6 data.mesh.rootNamespce: unknown field, did you mean rootNamespace?"),
            ("meshMTLS: {}\nmeshmTLS: {}", "7 data.mesh.meshmTLS: unknown field, did you mean meshMTLS?"),
            (
                "defaultConfig:\n  drainDuraton: 5s",
                "7 data.mesh.defaultConfig.drainDuraton: unknown field, did you mean drainDuration?",
            ),
            ("defaultProviders: [x]", "6 data.mesh.defaultProviders: must be a mapping, not a list"),
            ("a: 1\n---\nb: 1", "8 data.mesh: has more than one document"),
        ] {
            assert_eq!(read_text(text), (None, vec![wanted.to_owned()]), "{text}");
        }
    }
}
