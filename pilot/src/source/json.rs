//! JSON, as an API server sends it, to the nodes that YAML is read into. It has no lines: every node is on line 0.

use std::sync::Arc;

use super::yaml::{Entry, Node, Value};

/// The same content as a node.
pub fn node(value: serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value, if value { "true" } else { "false" }.into()),
        Json::Number(number) => {
            let text: Arc<str> = number.to_string().into();
            match number.as_i128() {
                Some(whole) => Value::Int(whole, text),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN), text),
            }
        }
        Json::String(text) => Value::Text(text.into()),
        Json::Array(items) => Value::Seq(items.into_iter().map(node).collect()),
        Json::Object(entries) => {
            let entry = |(key, value): (String, Json)| Entry { key: key.into(), line: 0, node: node(value) };
            Value::Map(entries.into_iter().map(entry).collect())
        }
    };
    Node { line: 0, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::yaml;

    /// Takes the lines away, which JSON has none of.
    fn without_lines(mut node: Node) -> Node {
        node.line = 0;
        match &mut node.value {
            Value::Seq(items) => items.iter_mut().for_each(|n| *n = without_lines(n.clone())),
            Value::Map(entries) => {
                for entry in entries {
                    entry.line = 0;
                    entry.node = without_lines(entry.node.clone());
                }
            }
            _ => {}
        }
        node
    }

    #[test]
    fn json_and_yaml_give_the_same_nodes() {
        let text = r#"{"a": [1, -2, 18446744073709551615, 0.5, true, null, "no"], "b": {"c": {}, "d": []}}"#;
        let written = yaml::parse(text).expect("JSON is YAML").remove(0);
        assert_eq!(node(serde_json::from_str(text).expect("JSON")), without_lines(written));
    }
}
