//! Labels of workloads, and equality selectors over them.

use std::collections::BTreeMap;
use std::collections::btree_map::Iter;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Labels, shared: cloning is cheap. As a selector, all of them must be there with the same value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(Arc<BTreeMap<String, String>>);

impl Labels {
    /// Value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In order of name.
    pub fn iter(&self) -> Iter<'_, String, String> {
        self.0.iter()
    }

    /// As a selector: true if `labels` has every one of these. The empty selector selects everything.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// These, with those of `over` winning.
    pub fn overlaid_with(&self, over: &Labels) -> Labels {
        if over.is_empty() {
            return self.clone();
        }
        let mut union = (*self.0).clone();
        union.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
        union.into()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(Arc::new(labels))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Labels {
    fn from(labels: [(&str, &str); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl<A: Into<String>, B: Into<String>> FromIterator<(A, B)> for Labels {
    fn from_iter<I: IntoIterator<Item = (A, B)>>(labels: I) -> Self {
        labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect::<BTreeMap<_, _>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_is_exact_equality_of_all() {
        let labels = Labels::from([("app", "reviews"), ("version", "v1")]);
        for (selector, wanted) in [
            (Labels::default(), true),
            (Labels::from([("app", "reviews")]), true),
            (Labels::from([("app", "reviews"), ("version", "v1")]), true),
            (Labels::from([("app", "Reviews")]), false),
            (Labels::from([("app", "reviews"), ("track", "a")]), false),
            (Labels::from([("version", "")]), false),
        ] {
            assert_eq!(selector.selects(&labels), wanted, "{selector:?}");
        }
    }

    #[test]
    fn the_upper_layer_wins() {
        let union =
            Labels::from([("a", "1"), ("b", "1")]).overlaid_with(&Labels::from([("b", "2"), ("c", "2")]));
        assert_eq!(union, Labels::from([("a", "1"), ("b", "2"), ("c", "2")]));
    }
}
