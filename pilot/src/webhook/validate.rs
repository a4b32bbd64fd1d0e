//! Checks a resource with the very reader that pilot's sources use.
//!
//! A kind that isn't supported yet is let pass with a warning: what people bring along must be storable. So is an update that
//! doesn't change what is wanted, or one of an object that is being deleted: whoever removes a finalizer can't mend the rest.

use std::sync::Arc;

use serde_json::{Value, json};

use super::review::Review;
use crate::model::{Kind, ResourceKey, Severity};
use crate::source::json::node;
use crate::source::object::{self, FirstSeen, Reader};

/// What to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// Why it is refused; none: it isn't.
    pub errors: Vec<String>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Which of two is the older changes nothing in a check of one.
struct Ageless;

impl FirstSeen for Ageless {
    fn first_seen(&mut self, _: &ResourceKey) -> i64 {
        0
    }
}

/// Checks the object of a review.
pub(super) fn check(review: Review, cluster_domain: &Arc<str>) -> Verdict {
    let Some(mut object) = review.object.filter(|_| review.operation != "DELETE") else {
        return Verdict::default();
    };
    complete(&mut object, &review.name, &review.namespace);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match object::kind(&review.kind.group, &review.kind.kind, name) {
        None => return Verdict::default(),
        Some(Kind::Unsupported) => {
            let warning = format!(
                "the kind {} of {} is not supported yet: it is stored and has no effect",
                review.kind.kind, review.kind.group
            );
            return Verdict { errors: Vec::new(), warnings: vec![warning] };
        }
        Some(_) => {}
    }
    let settled = !object["metadata"]["deletionTimestamp"].is_null()
        || review.old_object.is_some_and(|old| wanted(&old) == wanted(&object));
    let mut reader = Reader { file: None, cluster_domain, ages: &mut Ageless };
    let mut verdict = Verdict::default();
    for report in reader.read(node(object)).into_iter().flat_map(|document| document.reports) {
        let text = match report.field.as_str() {
            "" => report.message,
            field => format!("{field}: {}", report.message),
        };
        match report.severity {
            Severity::Error if !settled => verdict.errors.push(text),
            _ => verdict.warnings.push(text),
        }
    }
    verdict
}

/// What an author writes, without the object's administration.
fn wanted(object: &Value) -> (&Value, &Value, &Value) {
    let metadata = &object["metadata"];
    (&object["spec"], &metadata["annotations"], &metadata["labels"])
}

/// A name that is still to be generated, and a namespace that only the request has.
fn complete(object: &mut Value, name: &str, namespace: &str) {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().is_none_or(str::is_empty) {
        let generated = || metadata["generateName"].as_str().map(|prefix| format!("{prefix}0"));
        let name = if name.is_empty() { generated() } else { Some(name.to_owned()) };
        metadata["name"] = name.into();
    }
    if metadata["namespace"].is_null() && !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
}

#[cfg(test)]
mod tests {
    use super::super::review::GroupVersionKind;
    use super::*;

    fn review(group: &str, object: Value) -> Review {
        Review {
            uid: "u".into(),
            kind: GroupVersionKind {
                group: group.into(),
                kind: object["kind"].as_str().unwrap_or_default().into(),
            },
            namespace: "shop".into(),
            name: String::new(),
            operation: "CREATE".into(),
            object: Some(object),
            old_object: None,
        }
    }

    fn virtual_service(spec: Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "reviews", "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
            "spec": spec,
        })
    }

    fn said(review: Review) -> (Vec<String>, Vec<String>) {
        let verdict = check(review, &"cluster.local".into());
        (verdict.errors, verdict.warnings)
    }

    const NETWORKING: &str = "networking.istio.io";

    #[test]
    fn all_errors_are_listed_with_their_fields() {
        let route = json!([{"destination": {"host": "reviews"}}]);
        let good = virtual_service(json!({"hosts": ["reviews"], "http": [{"route": route}]}));
        assert_eq!(said(review(NETWORKING, good)), (vec![], vec![]));

        let wrong = virtual_service(json!({
            "hosts": ["reviews"],
            "http": [{"route": route, "timeout": "soon"}, {"route": route, "retries": {"attempts": -1}}],
        }));
        let (errors, _) = said(review(NETWORKING, wrong));
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].starts_with("spec.http[0].timeout: \"soon\""), "{errors:?}");
        assert!(errors[1].starts_with("spec.http[1].retries.attempts: -1"), "{errors:?}");

        let typo = virtual_service(json!({"hosts": ["reviews"], "htp": []}));
        assert_eq!(said(review(NETWORKING, typo)).0, ["spec.htp: unknown field, did you mean http?"]);
    }

    #[test]
    fn what_is_not_supported_is_stored_with_a_warning() {
        let gateway = json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "a"}, "spec": {"servers": 1}});
        let wanted =
            "the kind Gateway of networking.istio.io is not supported yet: it is stored and has no effect";
        assert_eq!(said(review(NETWORKING, gateway)), (vec![], vec![wanted.to_owned()]));
        let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        assert_eq!(said(review("apps", other)), (vec![], vec![]));
    }

    #[test]
    fn names_that_are_still_to_be_made() {
        let mut object = virtual_service(json!({"hosts": ["a"], "http": [{"redirect": {"uri": "/x"}}]}));
        object["metadata"] = json!({"generateName": "reviews-"});
        assert_eq!(said(review(NETWORKING, object)), (vec![], vec![]));
    }

    #[test]
    fn an_update_that_wants_nothing_else_passes() {
        let wrong = virtual_service(json!({"hosts": ["a"], "htp": []}));
        let update = |old: Value, new: Value| Review {
            operation: "UPDATE".into(),
            old_object: Some(old),
            ..review(NETWORKING, new)
        };
        let mut without_finalizer = wrong.clone();
        without_finalizer["metadata"]["finalizers"] = json!([]);
        let (errors, warnings) = said(update(wrong.clone(), without_finalizer));
        assert_eq!(errors, [""; 0]);
        assert_eq!(warnings, ["spec.htp: unknown field, did you mean http?"]);
        let mut dying = virtual_service(json!({"hosts": ["a"], "htp": [1]}));
        dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(said(update(wrong.clone(), dying)).0, [""; 0]);
        let changed = virtual_service(json!({"hosts": ["a"], "htp": [1]}));
        assert_eq!(said(update(wrong.clone(), changed)).0.len(), 1);
        let deleted = Review { operation: "DELETE".into(), ..review(NETWORKING, wrong) };
        assert_eq!(said(deleted), (vec![], vec![]));
    }
}
