//! Which namespaces count: `discoverySelectors` of the mesh configuration over the labels of Namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::LabelSelector;
use osier_core::labels::Labels;

/// Namespaces, and what selects them.
#[derive(Debug, Default)]
pub struct Selection {
    selectors: Arc<[LabelSelector]>,
    namespaces: BTreeMap<Arc<str>, Labels>,
}

impl Selection {
    /// Takes other selectors. True if another namespace may count now.
    pub fn select(&mut self, selectors: Arc<[LabelSelector]>) -> bool {
        let changed = self.selectors != selectors;
        self.selectors = selectors;
        changed
    }

    /// Takes the labels of a Namespace; `None` where it is gone. True if it counts and did not, or the other way round.
    pub fn label(&mut self, namespace: &Arc<str>, labels: Option<Labels>) -> bool {
        let before = self.counts(namespace);
        match labels {
            Some(labels) => self.namespaces.insert(namespace.clone(), labels),
            None => self.namespaces.remove(namespace),
        };
        before != self.counts(namespace)
    }

    /// True if what is in this namespace counts. Without selectors, all do.
    pub fn counts(&self, namespace: &str) -> bool {
        let none = Labels::default();
        let labels = self.namespaces.get(namespace).unwrap_or(&none);
        self.selectors.is_empty() || self.selectors.iter().any(|selector| selector.matches(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LabelSelector, Operator, Requirement};

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement { key: key.into(), operator, values: values.iter().map(|v| (*v).into()).collect() }
    }

    #[test]
    fn all_count_until_something_is_selected() {
        let mut selection = Selection::default();
        let shop: Arc<str> = "shop".into();
        assert!(selection.counts("shop"));
        let in_mesh = LabelSelector { requirements: vec![requirement("mesh", Operator::In, &["on"])] };
        assert!(selection.select([in_mesh].into()));
        assert!(!selection.counts("shop"));
        assert!(selection.label(&shop, Some([("mesh", "on")].into())));
        assert!(selection.counts("shop"));
        assert!(!selection.label(&shop, Some([("mesh", "on"), ("a", "b")].into())), "it counted before");
        assert!(selection.label(&shop, None));
    }

    #[test]
    fn operators() {
        let labels: Labels = [("tier", "db")].into();
        for (operator, values, wanted) in [
            (Operator::In, &["db", "web"][..], true),
            (Operator::In, &["web"], false),
            (Operator::NotIn, &["web"], true),
            (Operator::NotIn, &["db"], false),
            (Operator::Exists, &[], true),
            (Operator::DoesNotExist, &[], false),
        ] {
            let selector = LabelSelector { requirements: vec![requirement("tier", operator, values)] };
            assert_eq!(selector.matches(&labels), wanted, "{operator:?} {values:?}");
            let absent = matches!(operator, Operator::NotIn | Operator::DoesNotExist);
            assert_eq!(selector.matches(&Labels::default()), absent, "{operator:?} without the label");
        }
    }
}
